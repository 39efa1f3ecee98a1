"""What a round costs in bytes and seconds, and what that leaves for training.

Formulas, for planning; what a run has measured stands in its metrics.
"""

# Of one core, measured on a 2-core x86 machine; memory bounds them.
ENCODE_BYTES = 8e9  # float32 bytes a second
ACCUMULATE_BYTES = 12e9  # decoding is as fast
NESTEROV_VALUES = 2e9  # values a second

_TCP_PAYLOAD, _ETHERNET_FRAME = 1448, 1538  # bytes; preamble and gap included
_HTTP2_PAYLOAD, _HTTP2_HEADER = 16_384, 9


def coded_bytes_sent(
  islands: int, coded_bytes: float, shares: bool = True
) -> float:
  """Coded bytes that one of n islands sends in a round; it receives as many.

  A member sends every other one its share of the delta, and then its share of
  the mean: 2 (n - 1) / n of the coded vector, as a ring all-reduce does. With a
  sparse codec there are no shares, and it sends every other one all its code:
  n - 1 times the coded vector.
  """
  if not shares:
    return (islands - 1) * coded_bytes
  return 2 * (islands - 1) / islands * coded_bytes


def wire_bytes(coded_bytes: float) -> float:
  """The same bytes on an Ethernet wire: in HTTP/2, TCP and IPv4, without TLS.

  TCP's acknowledgements and what is sent again are left out.
  """
  frames = 1 + _HTTP2_HEADER / _HTTP2_PAYLOAD
  return coded_bytes * frames * _ETHERNET_FRAME / _TCP_PAYLOAD


def transfer_seconds(wire_bytes: float, bits_per_second: float) -> float:
  """Time to send so much, and to receive as much, on a full-duplex link."""
  return 8 * wire_bytes / bits_per_second


def host_seconds(values: int, threads: int) -> float:
  """An island's own work in a round, were nothing of it hidden by transfers.

  It encodes its delta, accumulates its share of n deltas (n times 1 / n of the
  vector) and encodes the mean, decodes all of the mean, takes the outer step.
  """
  encode = 4 * values * (1 + 1 / 2) / ENCODE_BYTES  # the share: at most half
  decode = 2 * 4 * values / ACCUMULATE_BYTES
  return (encode + decode) / threads + values / NESTEROV_VALUES


def compute_utilization(
  window_seconds: float, round_seconds: float, ahead_seconds: float = 0.0
) -> float:
  """The part of the time in which an island trains.

  Args:
    window_seconds: the inner steps of one round.
    round_seconds: from the proposal to the record.
    ahead_seconds: of training that may follow the proposal before the record
      comes: see `overlap.most_ahead`. 0: the island waits, as INTELLECT-1 did.
  """
  blocked = max(0.0, round_seconds - ahead_seconds)
  return window_seconds / (window_seconds + blocked)
