"""TextStreamer and pipeline on an adapted model; run by test_scripts.py with peft imported or absent.

Prints what the streamer prints, and the pipeline's answer as one line of JSON at the end.
"""

import json
import sys

if sys.argv[1] == "absent":
    sys.modules["peft"] = None  # type: ignore[assignment]
else:
    import peft  # noqa: F401

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TextStreamer,
    pipeline,
)

from lorasmith import LoraConfig, get_peft_model

symbols = ["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
letters = Tokenizer(models.BPE(vocab={symbol: number for number, symbol in enumerate(symbols)}, merges=[]))
letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
letters.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="<pad>", eos_token="</s>")

torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
special = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
base = LlamaForCausalLM(LlamaConfig(vocab_size=len(symbols), initializer_range=0.2, **sizes, **special))
model = get_peft_model(base, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")).eval()
settings = {"max_new_tokens": 6, "do_sample": False}
prompt = tokenizer("abc", return_tensors="pt")

with torch.no_grad():
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.normal_(std=0.5)
with model.disable_adapter():
    bare = tokenizer.decode(model.generate(**prompt, **settings)[0])
adapted = tokenizer.decode(model.generate(**prompt, **settings, streamer=TextStreamer(tokenizer))[0])
generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
piped = generator("abc", **settings)[0]["generated_text"]
print(json.dumps({"bare": bare, "adapted": adapted, "piped": piped}))
