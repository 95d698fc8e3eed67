"""What is evaluated: data of any structure, the forward on a batch, and metrics of its output."""
