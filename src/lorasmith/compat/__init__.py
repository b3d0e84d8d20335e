"""PEFT's names, so that replacing `from peft import` by `from lorasmith import` migrates a script."""
