"""The compiled operators, and the public functions on tensors that call them."""
