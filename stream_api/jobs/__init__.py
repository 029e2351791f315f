"""Jobs: BullMQ on Redis behind the project's own interface, and the reconciler that makes Redis disposable."""
