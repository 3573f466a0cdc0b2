"""What a run would take, told from shapes alone: skeleton, trace, devices, cards, estimate."""
