"""The compiled operators and the public calls on tensors that reach them."""
