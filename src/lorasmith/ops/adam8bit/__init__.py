"""One step of AdamW on moments that are kept in 8 bits."""
