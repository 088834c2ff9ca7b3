"""`python -m fgpipe.bench`: the figures of speed, each beside its goal; one module for each section of the table."""
