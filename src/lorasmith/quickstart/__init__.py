"""The main job on a small model that this project trained itself: quantize, fine-tune, keep the adapter, compare."""
