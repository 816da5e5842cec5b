"""The promise on accuracy, checks of F and its gradients, and the facts of this machine."""
