"""The bodies that clients send. A field that is not here is refused by its name.

A field that is null counts as not given, whatever it is called. Values are not converted: a number
in quotes is an error.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, model_validator

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=0)]
Positive = Annotated[int, Field(strict=True, ge=1)]
Choices = Annotated[int, Field(strict=True, ge=1, le=128)]
RequestId = Annotated[str, Field(strict=True, min_length=1, max_length=128)]
TokenIds = list[StrictInt]


class Body(BaseModel):
    """An object that refuses unknown fields and reads null as absence."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {k: v for k, v in values.items() if v is not None}


class Whole(Body):
    """A whole body: no text in it may hold half a surrogate pair, which no tokenizer takes."""

    @model_validator(mode="before")
    @classmethod
    def _is_unicode(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        try:
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text that is no Unicode: {error.reason}") from None
        return values


class StreamOptions(Body):
    """What a stream says beside its text."""

    include_usage: StrictBool = False
    continuous_usage_stats: StrictBool = False
    include_obfuscation: Literal[False] | None = None


class Sampling(Whole):
    """The fields that go to the engine's sampling parameters under the same name."""

    temperature: Number | None = None
    top_p: Number | None = None
    top_k: StrictInt | None = None
    min_p: Number | None = None
    typical_p: Number | None = None
    n: Choices | None = None
    seed: StrictInt | None = None
    stop: StrictStr | list[StrictStr] | None = None
    stop_token_ids: TokenIds | None = None
    min_tokens: Count | None = None
    ignore_eos: StrictBool | None = None
    include_stop_str_in_output: StrictBool | None = None
    skip_special_tokens: StrictBool | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    repetition_penalty: Number | None = None
    logit_bias: dict[str, Number] | None = None
    allowed_token_ids: TokenIds | None = None
    bad_words: list[StrictStr] | None = None
    prompt_logprobs: StrictInt | None = None
    structured_outputs: dict[str, Any] | None = None
    thinking_token_budget: Count | None = None


class Generation(Sampling):
    """What completions and chat share beside sampling."""

    model: StrictStr | None = None
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    response_format: dict[str, Any] | None = None
    truncate_prompt_tokens: Positive | None = None
    use_beam_search: StrictBool = False
    length_penalty: Number | None = None
    user: StrictStr | None = None
    priority: StrictInt | None = None
    cache_salt: StrictStr | None = None
    return_token_ids: StrictBool = False
    return_tokens_as_token_ids: StrictBool = False
    # What clients send by default and what is so here in any case: nothing is kept, there is one
    # tier and one cache, and special tokens have the spaces that the tokenizer gives them.
    store: StrictBool = False
    metadata: dict[str, StrictStr] | None = None
    service_tier: Literal["auto", "default"] | None = None
    prompt_cache_key: StrictStr | None = None
    prompt_cache_retention: Literal["in_memory"] | None = None
    safety_identifier: StrictStr | None = None
    spaces_between_special_tokens: Literal[True] | None = None
    request_id: RequestId | None = None


class CompletionBody(Generation):
    """The body of /v1/completions."""

    prompt: StrictStr | TokenIds | list[StrictStr] | list[TokenIds]
    max_tokens: Count | None = 16
    best_of: Choices | None = None
    suffix: StrictStr | None = None
    logprobs: Annotated[int, Field(strict=True, ge=0, le=100)] | None = None
    echo: StrictBool = False
    add_special_tokens: StrictBool = True


class TextPart(Body):
    """A piece of a message's content; a refusal is text that a model once said."""

    type: Literal["text", "input_text", "output_text", "refusal"]
    text: StrictStr
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    parsed: Any = None  # what a client made of the text of a reply that it sends back

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("type") == "refusal" and "refusal" in values:
            return {"text": values["refusal"]} | {k: values[k] for k in values if k != "refusal"}
        return values


class FunctionCall(Body):
    """A call that the model made: the name and the arguments as JSON text."""

    name: StrictStr
    arguments: StrictStr = "{}"
    parsed_arguments: Any = None  # what a client made of them


class ToolCall(Body):
    """A call with the id that its result will name."""

    id: StrictStr = ""
    type: Literal["function"] = "function"
    function: FunctionCall
    index: Count | None = None


class Message(Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: StrictStr | list[TextPart] | None = None
    name: StrictStr | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: StrictStr | None = None
    reasoning_content: StrictStr | None = None
    reasoning: StrictStr | None = None
    refusal: StrictStr | None = None
    annotations: list[Any] | None = None
    parsed: Any = None

    @property
    def plain_content(self) -> str:
        """The text of the content, its parts joined by line ends; of a refusal where it is one."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or self.refusal or ""


class Function(Body):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: Annotated[str, Field(strict=True, pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: StrictStr | None = None
    parameters: dict[str, Any] | None = None
    strict: StrictBool | None = None


class Tool(Body):
    """A tool: always a function."""

    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    """The name in a tool choice."""

    name: StrictStr


class NamedTool(Body):
    """The choice of one tool by name."""

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Body):
    """Those of the tools that may be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1)]


class ToolSubset(Body):
    """The choice of some tools, any or one of which is to be called."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class ChatBody(Generation):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    logprobs: StrictBool = False
    top_logprobs: Annotated[int, Field(strict=True, ge=0, le=20)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | ToolSubset | None = None
    parallel_tool_calls: StrictBool = True
    reasoning_effort: StrictStr | None = None
    include_reasoning: StrictBool = True
    echo: StrictBool = False
    chat_template: StrictStr | None = None
    verbosity: Literal["medium"] | None = None
    add_generation_prompt: StrictBool = True
    continue_final_message: StrictBool = False
    add_special_tokens: StrictBool = False
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    modalities: list[Literal["text"]] | None = None


class TokenizeBody(Whole):
    """The body of /tokenize: a prompt, or messages for the chat template."""

    model: StrictStr | None = None
    prompt: StrictStr | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: StrictBool | None = None
    add_generation_prompt: StrictBool = True
    return_token_strs: StrictBool = False
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeBody(Whole):
    """The body of /detokenize."""

    model: StrictStr | None = None
    tokens: TokenIds
    skip_special_tokens: StrictBool = False


class Pooled(Whole):
    """What the bodies of endpoints that give vectors share."""

    model: StrictStr | None = None
    user: StrictStr | None = None
    priority: StrictInt | None = None
    cache_salt: StrictStr | None = None
    truncate_prompt_tokens: Positive | None = None
    request_id: RequestId | None = None


class InputBody(Pooled):
    """The body of /classify: texts or token ids, or one conversation for the chat template."""

    input: StrictStr | TokenIds | list[StrictStr] | list[TokenIds] | None = None
    add_special_tokens: StrictBool | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    chat_template: StrictStr | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: StrictBool = False
    continue_final_message: StrictBool = False


class PoolingBody(InputBody):
    """The body of /pooling."""

    encoding_format: Literal["float", "base64"] = "float"


class EmbeddingBody(PoolingBody):
    """The body of /v1/embeddings."""

    dimensions: Positive | None = None
    normalize: StrictBool = True


class ScoreBody(Pooled):
    """The body of /score: a text, or as many as there are of the second."""

    text_1: StrictStr | Annotated[list[StrictStr], Field(min_length=1)]
    text_2: StrictStr | Annotated[list[StrictStr], Field(min_length=1)]


class RerankBody(Pooled):
    """The body of /rerank."""

    query: StrictStr
    documents: Annotated[list[StrictStr], Field(min_length=1)]
    top_n: Positive | None = None
    return_documents: StrictBool = True
