"""Programs that XLA's CPU backend runs faster: equations replaced after differentiation, for CPU alone.

`replace` finds and exchanges the equations, at any depth; `pool` and `convolution` hold what stands in for them;
`autotune` picks among several forms by time measured on this machine. A further rewrite is a function from an equation
to its `Site`, named in `replace._site`.
"""
