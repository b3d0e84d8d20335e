"""int8: integers -127 to 127 with one absmax an output row (LLM.int8(), arXiv 2208.07339)."""

from lorasmith.formats.format import Format, formats

INT8 = formats.add("int8", Format("int8", bits=8, layout="rowwise", levels=None, bitsandbytes="int8"))
