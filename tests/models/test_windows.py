"""A model whose layers all see a window: tokens of eager, in a number of blocks that stays."""

from ferrule.compiler.build import Options, build_in_temporary, widest_window
from ferrule.ir.text import parse_graph
from ferrule.runtime.options import EngineOptions

import ferrule

from . import zoo


def test_blocks_out_of_sight_are_given_back():
    model, (prompt, *_) = zoo.build("mistral"), zoo.prompts(4)
    wanted, _ = zoo.eager_greedy(model, prompt, 60)
    options = Options(max_context=96, max_batch=2, chunk=16, block=4, progress=False)
    artifact = build_in_temporary(model, options)
    graph = parse_graph((artifact.path / "graph.ir").read_text())
    window = widest_window(graph)
    assert 0 < window < 16 and artifact.plan.limits["window"] == window
    engine = artifact.new_engine(EngineOptions(prefix_caching=False))
    sampling = ferrule.SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    engine.submit(prompt, sampling)
    tokens, used = [], []
    while engine.has_work:
        for delta in engine.step():
            tokens += delta.token_ids
        used.append(engine.pool.used)
        engine.check()
    assert tokens == wanted
    # A window and the token to come touch so many blocks of four at most, however long the text.
    assert max(used) <= (window + 3) // 4 + 1
