"""The tiny world: a language of instructions, a base policy and a judge, made from scratch by our own code and fixed seeds.

| module | makes |
|---|---|
| lexicon, language | instructions, answers of graded quality, and the rule: an exact judge that no training sees |
| policy | pi_0, a Llama of 1.1 M parameters fitted on mediocre answers |
| judge | PairRM's network on a small DeBERTa, fitted on the rule's preferences |
| fitting, worker | what both fits share; each runs in a process of its own, on one thread |

The demo's and the tests' fixture: nothing is downloaded, and the same seed on the same machine gives the same bytes.
"""
