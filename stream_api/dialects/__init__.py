"""What kind of CSV a file is: delimiter, quotes, encoding and compression; found from its beginning or given."""
