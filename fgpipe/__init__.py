"""Train a net as one process per block, with forward-mode tangents up and only scalars back."""
