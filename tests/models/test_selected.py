"""Attention over the keys that an indexer picks, end to end: tokens of ragged batches longer than
what is picked, against eager PyTorch.
"""

from ferrule.compiler.build import Options, build_in_temporary

import ferrule

from . import zoo

COUNT = 12


def test_a_ragged_batch_gives_the_tokens_of_eager():
    model, prompts = zoo.build("deepseek_v32"), zoo.prompts(4)
    options = Options(max_context=48, max_batch=4, chunk=40, progress=False)
    artifact = build_in_temporary(model, options)
    graph = (artifact.path / "graph.ir").read_text()
    assert "paged_selected_keys" in graph and 'extras = ("selected",)' in graph
    sampling = ferrule.SamplingParams(temperature=0.0, max_tokens=COUNT, ignore_eos=True)
    given = [list(c.token_ids) for c in artifact.generate(prompts, sampling)]
    assert given == [zoo.eager_greedy(model, p, COUNT)[0] for p in prompts]
    assert max(map(len, prompts)) + COUNT > 2 * model.config.index_topk
