"""The nine tasks of the Open Portuguese LLM Leaderboard, as facts.

Source: the leaderboard's task files (a fork of lm-evaluation-harness) and its published results; the tasks' names are ours.
"""

from collections.abc import Mapping

from sppo.errors import EvaluationError
from sppo.portuguese.specification import LeaderboardTask, Table

ENEM = Table("eduagarcia/enem_challenge")
BLUEX = Table("eduagarcia-temp/BLUEX_without_images")
OAB = Table("eduagarcia/oab_exams")
ASSIN2 = Table("assin2")
FAQUAD = Table("ruanchaves/faquad-nli")
HATEBR = Table("eduagarcia/portuguese_benchmark", "HateBR_offensive_binary")
HATE_SPEECH = Table("eduagarcia/portuguese_benchmark", "Portuguese_Hate_Speech_binary")
TWEETS = Table("eduagarcia/tweetsentbr_fewshot")

EXAM_QUESTION = "Pergunta:\n{question}\nAlternativas:\n{alternatives}\nResposta correta:"
FIVE = ("A", "B", "C", "D", "E")
YES_NO = ("Sim", "Não")
NO_YES_WORDS: Mapping[str | int, str] = {0: "Não", 1: "Sim"}
# fmt: off
ASSIN2_SHOTS = (
    1, 3251, 2, 3252, 3, 4, 5, 6, 3253, 7, 3254, 3255, 3256, 8, 9, 10, 3257, 11, 3258, 12, 13, 14, 15, 3259, 3260,
    3261, 3262, 3263, 16, 17, 3264, 18, 3265, 3266, 3267, 19, 20, 3268, 3269, 21, 3270, 3271, 22, 3272, 3273, 23, 3274,
    24, 25, 3275,
)
FAQUAD_SHOTS = (
    1893, 949, 663, 105, 1169, 2910, 2227, 2813, 974, 558, 1503, 1958, 2918, 601, 1560, 984, 2388, 995, 2233, 1982, 165,
    2788, 1312, 2285, 522, 1113, 1670, 323, 236, 1263, 1562, 2519, 1049, 432, 1167, 1394, 2022, 2551, 2194, 2187, 2282,
    2816, 108, 301, 1185, 1315, 1420, 2436, 2322, 766,
)
HATEBR_SHOTS = (
    48, 44, 36, 20, 3511, 88, 3555, 16, 56, 3535, 60, 40, 3527, 4, 76, 3579, 3523, 3551, 68, 3503, 84, 3539, 64, 3599,
    80, 3563, 3559, 3543, 3547, 3587, 3595, 3575, 3567, 3591, 24, 96, 92, 3507, 52, 72, 8, 3571, 3515, 3519, 3531, 28,
    32, 0, 12, 3583,
)
HATE_SPEECH_SHOTS = (
    52, 50, 39, 28, 3, 105, 22, 25, 60, 11, 66, 41, 9, 4, 91, 42, 7, 20, 76, 1, 104, 13, 67, 54, 97, 27, 24, 14, 16, 48,
    53, 40, 34, 49, 32, 119, 114, 2, 58, 83, 18, 36, 5, 6, 10, 35, 38, 0, 21, 46,
)
# fmt: on

TASKS: dict[str, LeaderboardTask] = {
    task.name: task
    for task in (
        LeaderboardTask(
            name="sppo_pt_enem",
            leaderboard_name="enem_challenge",
            card_name="ENEM Challenge (No Images)",
            card_type="eduagarcia/enem_challenge",
            table=ENEM,
            test_split="train",
            shot_split="train",
            shots=3,
            shot_column="id",
            shot_ids=("2022_21", "2022_88", "2022_143"),
            shots_are_tested=False,
            description="As perguntas a seguir são questões de múltipla escolha do Exame Nacional do Ensino Médio (ENEM), "
            'selecione a única alternativa correta e responda apenas com as letras "A", "B", "C", "D" ou "E".\n\n',
            question=EXAM_QUESTION,
            target_column="answerKey",
            words=None,
            other_word=None,
            reading="choice",
            answers=FIVE,
            metric="acc",
        ),
        LeaderboardTask(
            name="sppo_pt_bluex",
            leaderboard_name="bluex",
            card_name="BLUEX (No Images)",
            card_type="eduagarcia-temp/BLUEX_without_images",
            table=BLUEX,
            test_split="train",
            shot_split="train",
            shots=3,
            shot_column="id",
            shot_ids=("USP_2018_3", "UNICAMP_2018_2", "USP_2018_35", "UNICAMP_2018_16", "USP_2018_89"),
            shots_are_tested=False,
            description="As perguntas a seguir são questões de múltipla escolha de provas de vestibular de universidades "
            'brasileiras, selecione a única alternativa correta e responda apenas com as letras "A", "B", "C", "D" ou '
            '"E".\n\n',
            question=EXAM_QUESTION,
            target_column="answerKey",
            words=None,
            other_word=None,
            reading="choice",
            answers=FIVE,
            metric="acc",
        ),
        LeaderboardTask(
            name="sppo_pt_oab",
            leaderboard_name="oab_exams",
            card_name="OAB Exams",
            card_type="eduagarcia/oab_exams",
            table=OAB,
            test_split="train",
            shot_split="train",
            shots=3,
            shot_column="id",
            shot_ids=tuple(f"2010-01_{number}" for number in (1, 11, 13, 23, 26, 28, 38, 48, 58, 68, 76, 83, 85, 91, 99)),
            shots_are_tested=False,
            description="As perguntas a seguir são questões de múltipla escolha do Exame de Ordem da Ordem dos Advogados do "
            'Brasil (OAB), selecione a única alternativa correta e responda apenas com as letras "A", "B", "C" ou "D".\n\n',
            question=EXAM_QUESTION.replace("Pergunta", "Questão"),
            target_column="answerKey",
            words=None,
            other_word=None,
            reading="choice",
            answers=FIVE[:4],
            metric="acc",
        ),
        LeaderboardTask(
            name="sppo_pt_assin2_rte",
            leaderboard_name="assin2_rte",
            card_name="Assin2 RTE",
            card_type="assin2",
            table=ASSIN2,
            test_split="test",
            shot_split="train",
            shots=15,
            shot_column="sentence_pair_id",
            shot_ids=ASSIN2_SHOTS,
            shots_are_tested=True,
            description="Abaixo estão pares de premissa e hipótese. Para cada par, indique se a hipótese pode ser inferida a "
            'partir da premissa, responda apenas com "Sim" ou "Não".\n\n',
            question="Premissa: {premise}\nHipótese: {hypothesis}\n"
            "Pergunta: A hipótese pode ser inferida pela premissa? Sim ou Não?\nResposta:",
            target_column="entailment_judgment",
            words=NO_YES_WORDS,
            other_word=None,
            reading="label",
            answers=YES_NO,
            metric="f1_macro",
            more_metrics=("acc",),
        ),
        LeaderboardTask(
            name="sppo_pt_assin2_sts",
            leaderboard_name="assin2_sts",
            card_name="Assin2 STS",
            card_type="eduagarcia/portuguese_benchmark",
            table=ASSIN2,
            test_split="test",
            shot_split="train",
            shots=15,
            shot_column="sentence_pair_id",
            shot_ids=ASSIN2_SHOTS,
            shots_are_tested=True,
            description="Abaixo estão pares de frases que você deve avaliar o grau de similaridade. Dê uma pontuação entre 1,0 "
            "e 5,0, sendo 1,0 pouco similar e 5,0 muito similar.\n\n",
            question="Frase 1: {premise}\nFrase 2: {hypothesis}\n"
            "Pergunta: Quão similares são as duas frases? Dê uma pontuação entre 1,0 a 5,0.\nResposta:",
            target_column="relatedness_score",
            words=None,
            other_word=None,
            reading="number",
            answers=(),
            metric="pearson",
            more_metrics=("mse",),
        ),
        LeaderboardTask(
            name="sppo_pt_faquad_nli",
            leaderboard_name="faquad_nli",
            card_name="FaQuAD NLI",
            card_type="ruanchaves/faquad-nli",
            table=FAQUAD,
            test_split="test",
            shot_split="train",
            shots=15,
            shot_column=None,
            shot_ids=FAQUAD_SHOTS,
            shots_are_tested=True,
            description="Abaixo estão pares de pergunta e resposta. Para cada par, você deve julgar se a resposta responde à "
            'pergunta de maneira satisfatória e aparenta estar correta. Escreva apenas "Sim" ou "Não".\n\n',
            question="Pergunta: {question}\nResposta: {answer}\nA resposta dada satisfaz à pergunta? Sim ou Não?",
            target_column="label",
            words=NO_YES_WORDS,
            other_word=None,
            reading="label",
            answers=YES_NO,
            metric="f1_macro",
            more_metrics=("acc",),
        ),
        LeaderboardTask(
            name="sppo_pt_hatebr",
            leaderboard_name="hatebr_offensive",
            card_name="HateBR Binary",
            card_type="ruanchaves/hatebr",
            table=HATEBR,
            test_split="test",
            shot_split="train",
            shots=25,
            shot_column="idx",
            shot_ids=HATEBR_SHOTS,
            shots_are_tested=True,
            description="Abaixo contém o texto de comentários de usuários do Instagram em português, sua tarefa é classificar "
            'se o texto é ofensivo ou não. Responda apenas com "Sim" ou "Não".\n\n',
            question="Texto: {sentence}\nPergunta: O texto é ofensivo?\nResposta:",
            target_column="label",
            words={1: "Sim"},
            other_word="Não",
            reading="label",
            answers=YES_NO,
            metric="f1_macro",
            more_metrics=("acc",),
        ),
        LeaderboardTask(
            name="sppo_pt_hate_speech",
            leaderboard_name="portuguese_hate_speech",
            card_name="PT Hate Speech Binary",
            card_type="hate_speech_portuguese",
            table=HATE_SPEECH,
            test_split="test",
            shot_split="train",
            shots=25,
            shot_column="idx",
            shot_ids=HATE_SPEECH_SHOTS,
            shots_are_tested=True,
            description="Abaixo contém o texto de tweets de usuários do Twitter em português, sua tarefa é classificar se o "
            'texto contém discurso de ódio ou não. Responda apenas com "Sim" ou "Não".\n\n',
            question="Texto: {sentence}\nPergunta: O texto contém discurso de ódio?\nResposta:",
            target_column="label",
            words={1: "Sim"},
            other_word="Não",
            reading="label",
            answers=YES_NO,
            metric="f1_macro",
            more_metrics=("acc",),
        ),
        LeaderboardTask(
            name="sppo_pt_tweetsentbr",
            leaderboard_name="tweetsentbr",
            card_name="tweetSentBR",
            card_type="eduagarcia/tweetsentbr_fewshot",
            table=TWEETS,
            test_split="test",
            shot_split="train",
            shots=25,
            shot_column=None,
            shot_ids=(),
            shots_are_tested=True,
            description="Abaixo contém o texto de tweets de usuários do Twitter em português, sua tarefa é classificar se o "
            "sentimento do texto é Positivo, Neutro ou Negativo. Responda apenas com uma das opções.\n\n",
            question="Texto: {sentence}\nPergunta: O sentimento do texto é Positivo, Neutro ou Negativo?\nResposta:",
            target_column="label",
            words={"Positive": "Positivo", "Negative": "Negativo"},
            other_word="Neutro",
            reading="label",
            answers=("Positivo", "Neutro", "Negativo"),
            metric="f1_macro",
            more_metrics=("acc",),
        ),
    )
}
"""By name, in the leaderboard's order."""


def task_named(name: str) -> LeaderboardTask:
    """A task by our name. Raises EvaluationError naming those there are."""
    if name not in TASKS:
        raise EvaluationError(f"no Portuguese task {name!r}; expected one of {', '.join(TASKS)}")
    return TASKS[name]
