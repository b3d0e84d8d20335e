"""int8 with one scale a row: LLM.int8()."""
