"""A run in one process: the real state machines, a clock and a network of ours.

Coordinators and IslandRounds exchange real messages in virtual time. What they
mean is symbolic: a delta is the list of its steps, a mean is a hash of what
went into it, theta a hash, by fragment, of the means that moved it. So "once",
"the same bits" and "nothing lost" are exact. The same seed gives the same run.

    world.py        the clock, the network, what a run is made of
    seat.py         a coordinator: the real machine, its disk, its operator
    island.py       an island: the real round, its stream, how it joins
    training.py     ... what it trains, proposes and merges; the real windows
    exchange.py     ... what it serves, reduces and gathers
    disk.py         ... and what it keeps
    symbols.py      what deltas, means and theta stand for
    faults.py       what goes wrong, and when
    invariants.py   what must be true all the same, after each event
    run.py          one seed, from the first hello to the end
    plants.py       errors planted in the code, to see that they are found
"""
