"""Labels -> objects for PACS, what people make of these, and the gate that all of them pass."""
