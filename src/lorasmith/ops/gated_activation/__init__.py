"""SwiGLU and GeGLU: an activation of a gate times a value, as one step that keeps the two."""
