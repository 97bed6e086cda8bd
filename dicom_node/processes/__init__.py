"""How the node's processes run: under one roof, watched over, giving signs of life."""
