"""HELMET's prompts, as facts of the benchmark: what stands before the context, and how a question is asked after it.

Source: HELMET (arXiv 2410.02694; code MIT, commit 4526dfb).  Recall, RAG, re-ranking and ICL are completions: the
question ends in the answer cue.  LongQA and summarisation are chat messages without a cue.
"""

from __future__ import annotations

QA_CUE, KV_CUE, ICL_CUE, RERANK_CUE, SUMMARY_CUE = "Answer:", "Corresponding value:", "label:", "Ranking:", "Summary:"

KV_ASK = (
    "\n\nExtract the value corresponding to the specified key in the JSON object below.\n\n{demos}"
    f"Key: {{question}}\n{KV_CUE}"
)
KV_DEMO = "Key: {key}\n" + KV_CUE + " {value}\n\n"

NIAH_TASK = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n"
)
NIAH_ASK = (
    "\nWhat is the special magic {kind} for {query} mentioned in the provided text?"
    "\nThe special magic {kind} for {query} mentioned in the provided text is"
)
NIAH_TASK_MANY = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n"
)
NIAH_ASK_MANY = (
    "\nWhat are all the special magic {kind} for {query} mentioned in the provided text?"
    "\nThe special magic {kind} for {query} mentioned in the provided text are"
)

QA_TASK = (
    "Use the given documents to write a concise and short answer to the question. "
    "Write your answer in the following format:\nAnswer: [answer]\n\n"
)
QA_ASK = "\n\nQuestion: {question}\n" + QA_CUE

RERANK_TASK = (
    "You are provided with a list of documents, each indicated by their ID. Rank each document based on their relevance to "
    "the question in descending order from most relelvant to least relevant texts. Include all documents in the rankings. "
    "Write your answer using the unique IDs, with the following format:\nRanking: ID3 > ID1 > ID2\n\n"
)
RERANK_ASK = "\n\nQuery: {question}\n" + RERANK_CUE

ICL_TASK = (
    "Use the provided mapping from the text to label to assign a label to the text. "
    'Only output "label: {label}" and nothing else. \n\n'
)
ICL_SHOT = "{text}\n" + ICL_CUE + " {label}"
ICL_ASK = "\n\n{question}\n" + ICL_CUE

NARRATIVE_TASK = (
    "You are given a story, which can be either a novel or a movie script, and a question. "
    "Answer the question as concisely as you can, using a single phrase if possible.\n\n"
)
STORY_TASK = (
    "You are given a story and a question. "
    "Answer the question as concisely as you can, using a single phrase if possible.\n\n"
)
STORY_ASK = "\n\nQuestion: {question}"
CHOICE_TASK = (
    "You are given a story and a question with multiple choices. Choose the best answer from the options provided. "
    "Only one of the following options is correct, output the answer using one single letter (A, B, C, or D). "
    "Don't say anything else.\n\n"
)
CHOICE_ASK = "\n\nQuestion: {question}\nOptions:\n{options}"
BOOK_TASK = (
    "You are given a book and you are tasked to summarize it. Write a summary of about 1000 to 1200 words. "
    "Only write about the plot and characters of the story. Do not discuss the themes or background of the book. "
    "Do not provide any analysis or commentary.\n\n"
)
BOOK_ASK = "\n\nNow summarize the book."
LAW_TASK = (
    "You are given the legal documents in a civil rights lawsuit, and you are tasked to summarize the case. "
    "Write a concise summary of one paragraph (200 to 250 words). The summary should contain a short description of the "
    "background, the parties involved, and the outcomes of the case.\n\n"
)
LAW_OPEN, LAW_ASK = "Legal documents:\n", "\n\nNow please summarize the case."
FOR_EXAMPLE = "For example:\n\n{demos}\n\n"


def passage(title: str, text: str) -> str:
    return f"Document (Title: {title}): {text}"


def ranked_passage(id_: str, text: str, title: str | None = None) -> str:
    return f"[ID: {id_}] Document{'' if title is None else f' (Title: {title})'}: {text}"


def options(choices: tuple[str, ...]) -> str:
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=True))
