"""How long a model takes on the user's provider, as a function of its widths; what the provider's kernels like.

`table` measures whole networks of many widths, node by node, and fits what each operator takes; `cost` makes of that
a cost that an allocation can spend; `meet` checks a choice on the clock and corrects it; `shelf` keeps tables on disk.
"""
