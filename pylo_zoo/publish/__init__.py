"""What is published beside the weights: the model card and its plot."""
