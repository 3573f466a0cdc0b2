"""Plans of runs, from shapes alone: parameters, memory, time, and what fits on which device."""
