"""A training sequence that ends with a turn of the assistant, and the earlier turns that it trains as well."""

from peftly.data.chat_tokens import ChatTokens
from peftly.data.chat_turns import Turn
from peftly.data.vocabulary import Vocabulary

__all__ = ["TurnSequence"]


class TurnSequence:
    """Token ids of a conversation up to a turn of the assistant.

    Attributes:
        ids: the token ids.
        trained: whether each token is trained.
    """

    def __init__(self, turn: Turn, vocabulary: Vocabulary) -> None:
        """Tokenize the conversation, and train the turn.

        The tokens of the prompt are those that generation starts from. If the tokenizer would join the last of them
        with the first characters of the turn, prompt and turn are tokenized separately.

        Args:
            turn: the last turn.
            vocabulary: vocabulary of the base's tokenizer.

        Raises:
            DataError: neither the chat template nor the tokenizer has an end of a turn.
        """
        texts = dict.fromkeys([turn.text + turn.rest, turn.text] if turn.has_end else [turn.text])
        for self._text in texts:
            self._tokens = ChatTokens(self._text, vocabulary.tokenizer)
            self.ids = self._tokens.ids
            start, end = self._tokens.prefix_length(turn.prompt), self._tokens.prefix_length(turn.text)
            if start is not None and end is not None:
                break
        else:
            self._text = turn.prompt
            self._tokens = ChatTokens(turn.prompt, vocabulary.tokenizer)
            start = len(self._tokens.ids)
            self.ids = self._tokens.ids + vocabulary.continuation(turn.text[len(turn.prompt) :])
            end = len(self.ids)
        if not turn.has_end:
            self.ids = [*self.ids[:end], vocabulary.required_end()]
            end += 1
        self.trained = [False] * len(self.ids)
        self._train(start, end)

    def add(self, turn: Turn) -> bool:
        """Train an earlier turn too, and return True, if the sequence shows its prompt and its words as they are.

        Args:
            turn: an earlier turn of the conversation.
        """
        if not turn.has_end or not self._text.startswith(turn.text):
            return False
        start, end = self._tokens.prefix_length(turn.prompt), self._tokens.prefix_length(turn.text)
        if start is None or end is None:
            return False
        self._train(start, end)
        return True

    def _train(self, start: int, end: int) -> None:
        self.trained[start:end] = [True] * (end - start)
        self.trained[:1] = [False]
