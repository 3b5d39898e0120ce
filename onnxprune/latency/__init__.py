"""How long a model takes on the user's provider, as a function of its widths; what the provider's kernels like.

`block`: in how many channels kernels work. `networks`: measures networks of many widths (`clock` reads what each node
took, `operators` whose time that is, `fit` what it depends on). `table`: what comes out, and the cost that it predicts.
`meet`: checks a choice on the clock and corrects it. `shelf`: what is kept on disk.
"""
