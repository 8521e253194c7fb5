"""One linear-Gaussian model of the background of a scan that has references.

    log y(t) = level(t) + mean flat + sum_k w_k(t) component_k + log T(t) + noise

`components` says what the background may do, `time_basis` how weights change, `scale_mixture` what steps of the
sample look like, `solve` finds the weights, `levels` the brightness of each frame.
"""
