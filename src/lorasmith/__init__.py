"""lorasmith: parameter-efficient fine-tuning that tells the truth about what it did."""
