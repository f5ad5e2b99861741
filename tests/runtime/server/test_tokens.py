"""/tokenize and /detokenize."""

from test_errors import post


def test_there_and_back(server):
    status, found = post(server, "/tokenize", {"prompt": "hé", "return_token_strs": True})
    assert status == 200 and found["tokens"] == list("hé".encode())
    assert (found["count"], found["max_model_len"]) == (3, 2048) and len(found["token_strs"]) == 3
    assert post(server, "/detokenize", {"tokens": found["tokens"]}) == (200, {"prompt": "hé"})
    assert post(server, "/detokenize", {"tokens": [-1]})[0] == 400


def test_messages_are_written_by_the_template(server):
    messages = [{"role": "user", "content": "a"}]
    _, found = post(server, "/tokenize", {"messages": messages})
    assert bytes(found["tokens"]) == b"<user>a</user><reply>"
    bare = {"messages": messages, "add_generation_prompt": False}
    assert bytes(post(server, "/tokenize", bare)[1]["tokens"]) == b"<user>a</user>"
    assert post(server, "/tokenize", {})[0] == 400
