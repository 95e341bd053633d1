"""What `backbone.weights` may name: found, read safely, fitted to a network, and recorded."""
