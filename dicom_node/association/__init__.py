"""What both ends of an association need, from the bytes of a PDU to the listener and the caller."""
