"""Root mean square norms as one step that keeps its input and one number a row."""
