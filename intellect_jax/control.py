"""Control: see how a run stands, and steer it.

  python -m intellect_jax.control --coordinator=host:port COMMAND

  status                     who is in, their links, the open round, the losses
  pause, resume              no round is planned meanwhile; islands train on
  finish                     the next record is the final one
  evict NAME                 the island's process may not come back
  rollback --to=N            records after N count as not written
  set FIELD=VALUE …          such as run.outer.learning_rate=0.65, or =auto;
                             with --at-record=N from that record on

Each change is a record of the run, so that all islands, who joins later, and a
replay agree on it. --reason="…" is kept with it.
"""

import json

from absl import flags
import grpc
import rich.console
import rich.text

from intellect_jax import command
from intellect_jax import config as config_lib
from intellect_jax.elastic import rpc
from intellect_jax.elastic.protocol import elastic_pb2 as pb
from intellect_jax.elastic.protocol import elastic_pb2_grpc as pb_grpc
from intellect_jax.errors import UserError
from intellect_jax.observe.progress import render

COORDINATOR = flags.DEFINE_string(
  "coordinator",
  None,
  "host:port of the run's coordinator.",
  required=True,
  allow_override=True,  # of train's, where both are imported
)
TO = flags.DEFINE_integer(
  "to",
  None,
  "rollback: newest record that counts.",
  allow_override=True,  # of replay's
)
AT_RECORD = flags.DEFINE_integer(
  "at-record", 0, "set: from which record on; 0: from the next.", lower_bound=0
)
REASON = flags.DEFINE_string("reason", "", "Why, for the log of the run.")

_PATIENCE = 10.0  # seconds for the coordinator to answer
_USAGE = "status, pause, resume, finish, evict, rollback and set are commands"


def main(words: list[str]) -> None:
  change = change_of(words, TO.value, AT_RECORD.value)
  rpc.split_address(COORDINATOR.value)
  with rpc.channel(COORDINATOR.value, rpc.LOOPBACK) as channel:
    stub = pb_grpc.CoordinatorStub(channel)
    try:
      if change is None:
        description = stub.Describe(pb.DescribeRequest(), timeout=_PATIENCE)
        show(stub.GetStatus(pb.StatusRequest(), timeout=_PATIENCE), description)
        return
      change.reason = REASON.value
      reply = stub.Control(change, timeout=_PATIENCE)
    except grpc.RpcError as error:
      raise UserError(
        f"The coordinator at {COORDINATOR.value} does not answer"
        f" ({error.code().name}). Check --coordinator, and that it runs."
      ) from error
  if reply.refusal:
    raise UserError(f"The coordinator refuses: {reply.refusal}.")
  print(f"Done; record {reply.record} says so.")


def change_of(
  words: list[str], to: int | None, at_record: int
) -> pb.ControlRequest | None:
  """What the words of a command line ask for; None for `status`.

  Raises:
    UserError: if that is not clear.
  """
  match words:
    case ["status"]:
      return None
    case ["pause"]:
      return pb.ControlRequest(pause=pb.SetPause(paused=True))
    case ["resume"]:
      return pb.ControlRequest(pause=pb.SetPause(paused=False))
    case ["finish"]:
      return pb.ControlRequest(finish=pb.Finish())
    case ["evict", island]:
      return pb.ControlRequest(evict=pb.Evict(island=island))
    case ["rollback"]:
      if to is None or to < 0:
        raise UserError("rollback wants --to=N, the newest record that counts.")
      return pb.ControlRequest(rollback=pb.Rollback(to=to))
    case ["set", _, *_]:
      values = dict(_assignment(word) for word in words[1:])
      return pb.ControlRequest(set=pb.Set(values=values, at_record=at_record))
  raise UserError(
    f"{' '.join(words) or 'Nothing'!r} is no command: {_USAGE}. --help shows"
    " what they do and want."
  )


def _assignment(word: str) -> tuple[str, str]:
  """FIELD=VALUE as the field and its value in JSON."""
  field, equals, text = word.partition("=")
  if not (field and equals and text):
    raise UserError(
      f"set wants FIELD=VALUE, as in run.outer.learning_rate=0.65, not {word!r}."
    )
  if text in ("True", "False"):  # as in the config's files
    text = text.lower()
  try:
    return field, json.dumps(json.loads(text))
  except ValueError:
    return field, json.dumps(text)


def show(status: pb.Status, description: pb.Description) -> None:
  """Prints a run as it stands, for a person."""
  console = rich.console.Console()
  run = config_lib.from_json(description.run_json)
  evaluations = {e.record: e.loss for e in status.evaluations}
  # As many rows as there are islands: a terminal can be scrolled.
  console.print(render(status, run, evaluations, height=10_000))
  for field, value in sorted(status.settings.items()):
    console.print(rich.text.Text(f"changed: {field}={value}"))
  host = COORDINATOR.value.rpartition(":")[0]
  for relay in description.relays:
    where = host + relay if relay.startswith(":") else relay
    console.print(rich.text.Text(f"relay: {where}"))
  for warning in status.warnings:
    console.print(rich.text.Text(warning, "yellow"))


if __name__ == "__main__":
  flags.FLAGS.set_gnu_getopt()  # flags may stand after the command
  command.run(main, words=True)
