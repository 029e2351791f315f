"""The bounded channel and the byte budget that both stages are built of."""
