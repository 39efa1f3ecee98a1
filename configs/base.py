"""Every field of a run, with its unit and where its default comes from.

Two halves. `run` is what makes a run the same run: it is hashed, served by the
coordinator and equal on every island. `island` is what each host may choose
for itself: its mesh, its paths, its place. Other configs start from this one:

  python -m intellect_jax.train --config=configs/demo.py --workdir=/tmp/demo

Sources: [I1] INTELLECT-1, arXiv 2412.01152; [D] DiLoCo, arXiv 2311.08105;
[SL] DiLoCo scaling laws, arXiv 2503.09799; [L3] Llama 3, arXiv 2407.21783;
[M] Muon at scale, arXiv 2502.16982; [ML] MuLoCo, arXiv 2505.23725;
[H] Hägele et al., arXiv 2405.18392; [Z] linear to zero, arXiv 2502.15938;
[C] Covenant-72B, arXiv 2603.08163; [DD] Decoupled DiLoCo, arXiv 2604.21428;
[PI] Pier, arXiv 2511.17849; [S] Streaming DiLoCo, arXiv 2501.18512;
[E] eager updates, arXiv 2502.12996; [SP] SparseLoCo, arXiv 2508.15706;
[DPO] direct preference optimization, arXiv 2305.18290; [IR] iterative
reasoning preference optimization, arXiv 2404.19733; [LoRA] low-rank
adaptation, arXiv 2106.09685; [P] docs/protocol.md of this project.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.run = run_config()
  config.island = island_config()
  return config


def run_config() -> ml_collections.ConfigDict:
  run = ml_collections.ConfigDict()
  run.name = "base"  # shown in progress and results
  run.seed = 0  # of the initial parameters; data has its own
  run.init_from = ""  # digest of weights instead; --init-from=FOLDER sets it
  run.tokens = 1_000_000_000  # committed tokens after which the run is final

  run.model = ml_collections.ConfigDict(
    dict(
      layers=12,
      width=1024,  # residual stream
      heads=16,  # query heads
      kv_heads=16,  # key/value heads; divides heads (GQA)
      head_dim=64,
      ffn=2816,  # hidden width of SwiGLU
      vocab_size=32_000,  # at least the tokenizer's
      rope_theta=10_000.0,  # [L3] uses 5e5
      norm_epsilon=1e-5,  # RMSNorm [I1]
      tied_embeddings=False,  # output projection = embedding, transposed
      dtype="bfloat16",  # of compute; parameters and moments are float32
      # Adapters of this rank are trained beside weights that stay [LoRA]; 0: all
      # weights are trained.
      lora_rank=0,
      lora_alpha=16.0,  # what they add is times lora_alpha / lora_rank [LoRA]
    )
  )
  run.data = ml_collections.ConfigDict(
    dict(
      # "python_docs", the text that ships, and names of prepared sources:
      # folders in island.data.folder, written by data.prepare.
      sources=("python_docs",),
      # (tokens of the run from which on, weight of each source by tokens).
      stages=((0, (1.0,)),),
      digest="",  # of the prepared sources; who starts the run notes it
      # "byte", "bpe:N" with N token ids, or a file in island.data.folder: a
      # tokenizer.json, a SentencePiece model, a tiktoken file as Llama 3's.
      tokenizer="bpe:32000",
      tokenizer_digest="",  # who starts the run notes it
      chat_template="",  # Jinja; who starts the run notes that of conversations
      sequence_length=1024,  # tokens a packed sample
      seed=0,  # of the shuffle
      held_out=0.05,  # of the shipped documents, kept for evaluation
    )
  )
  run.inner = ml_collections.ConfigDict(
    dict(
      batch_size=128,  # sequences an island and inner step [I1]
      # "cross_entropy" of the next token, of text and of what an assistant says;
      # or "dpo", for preferences: it starts from weights, and keeps them [DPO].
      loss="cross_entropy",
      dpo_beta=0.1,  # how dear it is to leave them [DPO]
      # What the NLL of the chosen answers counts beside it, so that they do not
      # grow unlikely together with the rejected [IR]; 0.2 in [L3].
      dpo_nll_weight=0.0,
      # "adamw", or "muon" for the matrices of the blocks and AdamW for the
      # rest; Muon wants outer.momentum=0.6, outer.learning_rate=0.7 [ML].
      optimizer="adamw",
      learning_rate=4e-4,  # peak, AdamW [D]
      warmup_tokens=0,  # linear, over global tokens [P 9]
      decay_tokens=0,  # the rate falls over the last global tokens of the run
      # How: "sqrt" is 1 - sqrt of the way there [H], as in [I1]; "linear" [Z], or
      # "cosine".
      decay="sqrt",
      decay_to=0.0,  # the part of the rate that is left at the end
      # Over which who comes to a run under way ramps up its own rate: Adam's
      # moments are new there, as at the start of a run [P 9].
      joiner_warmup_steps=10,
      beta1=0.9,  # [I1]
      beta2=0.95,  # [I1]
      epsilon=1e-8,
      muon_beta=0.95,  # Nesterov momentum of Muon [M]
      muon_rms=0.2,  # of Muon's updates: as large as AdamW's are [M]
      weight_decay=0.1,  # on matrices and embeddings, not on norms [I1]
      clip_norm=1.0,  # global gradient norm [I1]
      max_z_loss=0.0,  # weight of the squared largest logit; 2e-4 in [I1]
    )
  )
  run.outer = ml_collections.ConfigDict(
    dict(
      inner_steps=100,  # H: inner steps a window [I1]
      # eta; or "auto": 0.4 / 0.6 / 0.8 for 1 / 2-4 / 8 members of a record, and
      # between (outer/rates.py), tuned at momentum=0.9 [SL].
      learning_rate=ml_collections.FieldReference(0.7, field_type=object),
      # The rate falls linearly over the last so many tokens of the run; 0: not.
      decay_tokens=0,
      decay_to=0.65,  # the part of it that is left at the end [C]
      momentum=0.9,  # mu, Nesterov [D]
      momentum_warmup_tokens=0,  # first committed ones, linear from 0 [PI]
      # Of deltas: "mean", weighted by tokens, or "rda", that mean with the norm
      # that the deltas have: for 8 islands and more [DD]. The step then does not
      # shrink as islands come: take a rate of your own, not "auto".
      merge="mean",
      # Of deltas and means: "int8" [I1], "int4", "e3m0" [S], or "float32"
      # (exact). 8.1, 4.1, 4.1 and 32 bits a value. Or "sparse2", of deltas, 0.16
      # bits a value [SP]: with learning_rate=1 and momentum=0.
      codec="int8",
      feedback=0.95,  # beta, of what "sparse2" has left out so far [SP]
      max_ahead_steps=0,  # inner steps past a proposal before waiting
      # tau: inner steps from a proposal to the merge of its record, at least;
      # 0: as soon as it is there. Up to 5 cost next to nothing [S].
      overlap_steps=0,
      # alpha: x <- alpha x + (1 - alpha) theta at a merge. With overlap 0.5 [S];
      # 0 throws away the steps of the overlap [P 8].
      merge_alpha=0.0,
      # While a delta is exchanged, train on from where its own part of the outer
      # step leads, and hear of the others one round late [E].
      eager=False,
      # P: parts of the model that are exchanged one after the other, H / P steps
      # apart; 1: all of it at once [S].
      fragments=1,
      max_carry=1,  # records that left-out work is carried over [P 3]
      # x the median norm of a delta per inner step, beyond which one is scaled
      # down; 0: none is [P 3]
      clip_ratio=0.0,
    )
  )
  run.elastic = ml_collections.ConfigDict(
    dict(
      start_islands=1,  # the first round waits for so many
      min_islands=1,  # fewer live islands commit nothing
      lease_seconds=10.0,  # silence after which an island is gone [P 4]
      hang_seconds=600.0,  # training without a step until it counts as hung
      offer_patience=120.0,  # seconds that a donor may take to offer its state
      minority_patience=600.0,  # fewer than half of the last members wait [P 4]
      annul_patience=60.0,  # seconds, of enough islands, none with the newest
      recheck_patience=600.0,  # seconds that a replay may take in a tie [P 4]
      fetch_patience=10.0,  # seconds without a byte before a peer is bad
      # Of what each reduces for all: "capacity" is by the links, as measured;
      # "equal" is by hosts and relays alone [P 3].
      share_by="capacity",
      # Part of the exchange's time by which it must fall before shares change:
      # links that differ by less than a tenth count as equal.
      share_gain=0.1,
      deadline=False,  # plan without islands that are late [P 3]
      deadline_ratio=1.5,  # x median of past windows; at least 1.1
      deadline_deviations=4.0,  # median + k * MAD of past windows
      deadline_cap=600.0,  # seconds after the first proposal, at most
    )
  )
  run.evaluation = ml_collections.ConfigDict(
    dict(
      sequences=64,  # held-out samples; 0: do not evaluate
      every=1,  # records from one evaluation to the next, and the final one
    )
  )
  return run


def island_config() -> ml_collections.ConfigDict:
  island = ml_collections.ConfigDict()
  island.name = ""  # unique in the run; empty: host name and process id
  island.place = ""  # free text: where the host stands
  island.platform = ""  # "cpu", "cuda"; empty: what JAX finds
  island.cpu_devices = 1  # host devices on the cpu platform
  island.mesh = ml_collections.ConfigDict(
    dict(
      fsdp=-1,  # devices that share each parameter; -1: all that are left
      tensor=1,  # devices that share each matrix product
    )
  )
  island.model = ml_collections.ConfigDict(
    dict(
      scan_layers=True,  # one compiled layer; False unrolls
      remat="dots",  # recompute in backward: "none", "dots" or "full"
      attention="xla",  # or "cudnn" on a GPU
    )
  )
  island.inner = ml_collections.ConfigDict(
    dict(
      window_steps=0,  # inner steps a window here; 0: run.outer.inner_steps
      microbatch=0,  # sequences a forward pass; 0: the whole batch
      loss_chunk=0,  # positions whose logits exist at once; 0: all
      paced_step_seconds=0.0,  # tests: a real step, then wait for the pace
    )
  )
  island.data = ml_collections.ConfigDict(
    dict(
      folder="",  # prepared sources, each a folder, and the tokenizer's file
      verify=True,  # hash all of it at start; False looks at sizes alone
      workers=0,  # processes that make batches; 0: a thread
    )
  )
  island.checkpoint = ml_collections.ConfigDict(
    dict(
      every=1,  # records between two durable checkpoints; 0: at the end
      keep=2,  # newest checkpoints to keep; more with run.outer.fragments
      remote="",  # URL of copies, as s3://bucket/folder (extra: remote)
      remote_patience=600.0,  # seconds that who leaves goes on copying
    )
  )
  # Where blobs are served, host:port; port 0 takes any free one. Empty: nobody
  # can call this host, as behind NAT, and a relay passes its blobs on.
  island.listen = "127.0.0.1:0"
  # Hosts, or addresses where ports are mapped, with commas, that others use;
  # empty: the one that is listened on.
  island.advertise = ""
  island.upload_mbit = 0.0  # 10^6 bits/s of blobs served; 0: no cap
  island.download_mbit = 0.0  # 10^6 bits/s of blobs fetched; 0: no cap
  # 10^9 bytes of records and means that are kept for islands that are late, and
  # for replay; beyond them only what the oldest checkpoint needs [P 5].
  island.log_gb = 8.0
  # 10^9 bytes that checkpoints and the log take in all; 0: no cap. Old means go
  # first, then old checkpoints. It must hold two, one being written.
  island.disk_gb = 0.0
  island.connect_patience = 30.0  # seconds for a coordinator to answer at start
  # Encode deltas where x lies, so that only codes leave the devices: "yes", "no",
  # or "auto", if those are no CPUs. Takes 4 bytes a parameter of their memory.
  island.encode_on_device = "auto"
  island.threads = 2  # of exchange work: encode, fetch, reduce, hash
  island.compilation_cache = "~/.cache/intellect_jax"  # empty: none
  return island
