"""What the words of the report mean, in the order in which a reader meets them, with the usual mistakes put right.

Each entry is (word, meaning). Plain text.
"""

from __future__ import annotations

GLOSSARY: tuple[tuple[str, str], ...] = (
    (
        "Loss, nats per token",
        "How surprised the model is by the next token of text it has never seen, on average: minus the "
        "natural logarithm of the probability it gave. Lower is better. A model that knows nothing scores the "
        "logarithm of its vocabulary size. Losses of models with different tokenizers must not be compared: a "
        "token may be a letter in one and a word in the other.",
    ),
    (
        "Bits per byte",
        "The same surprise, counted in bits and shared out over the bytes of the text. It does not depend on "
        "the tokenizer, so this is the number to compare across models. It is also how well the model would "
        "compress the text: 8 is no compression.",
    ),
    (
        "N, parameters",
        "The size of the model. It must be said which are counted. Here N is every weight that takes part in "
        "a matrix product for a token (blocks and output head), unless the law's table says otherwise. "
        "Counting differently changes the exponents: much of the famous difference between the Kaplan and the "
        "Chinchilla law comes from leaving out the embeddings.",
    ),
    (
        "D, tokens",
        "How many tokens the model is trained on. Text read twice counts twice, although it teaches less the "
        "second time.",
    ),
    (
        "C, compute, FLOPs",
        "The number of additions and multiplications that training takes. C is about 6 N D, not N D: for each "
        "parameter and token 2 in the forward pass and 4 in the backward pass. Using the finished model costs "
        "about 2 N for each token. Attention comes on top and matters in small models; the sums here include "
        "it. FLOPs are an amount; FLOP/s is a speed.",
    ),
    (
        "IsoFLOP curve",
        "Models of different sizes, each trained with the same compute: the small ones on much text, the "
        "large ones on little. The loss has a valley in between, and its floor is the best size for that "
        "compute. One such row of runs is a rung here.",
    ),
    (
        "Tokens per parameter, and the number 20",
        "The ratio D/N at the optimum. The well-known 20 is what DeepMind's runs gave for their text, "
        "tokenizer and recipe, with all parameters counted; it is no law of nature. The valley is flat, so a "
        "ratio twice as large costs little loss and gives a smaller model that is cheaper to use.",
    ),
    (
        "Chinchilla",
        "A model of 70 billion parameters trained on 1.4 trillion tokens, and the paper that derived it: "
        "Hoffmann et al. 2022, 'Training Compute-Optimal Large Language Models'. It is from DeepMind, not "
        "from OpenAI; OpenAI's earlier law is Kaplan et al. 2020. The constants printed for the paper's third "
        "approach did not fit its own data well (Besiroglu et al. 2024). Constants of any paper are only a "
        "starting guess for your text: this run fitted its own.",
    ),
    (
        "E, A, B, alpha, beta",
        "The law L = E + A/N^alpha + B/D^beta. E is what remains with endless size and endless text; the "
        "other two terms are the price of a finite model and of finite text. a = beta/(alpha+beta) says how "
        "fast the best size grows with compute, b = alpha/(alpha+beta) how fast the best amount of text does. "
        "The names follow the paper.",
    ),
    (
        "Forecast interval",
        "A stretch of losses that was written down before training. It is made from two extrapolations that "
        "err on opposite sides (a straight line on log-log paper, too optimistic; the law with its floor, too "
        "pessimistic), widened by noise. It is not the bootstrap interval of the fit, which on published "
        "sweeps held the truth far less often than it promised.",
    ),
    (
        "Back-test",
        "The forecast made with the most expensive rungs hidden, compared with what those rungs reached. If "
        "it misses there, it may miss further out as well.",
    ),
)
