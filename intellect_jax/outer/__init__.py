"""DiLoCo on arrays: deltas, codecs, the mean, Nesterov. No transport here."""
