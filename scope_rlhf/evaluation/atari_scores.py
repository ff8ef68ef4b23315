"""Scores of a random policy and a human tester in 57 Atari games: the zero and the one of human-normalised scores.

Keys are the names of gymnasium's ids: ALE/<name>-v5, <name>NoFrameskip-v4. Scores are undiscounted returns of whole
games after up to 30 no-ops, with 30 minutes (108,000 frames) a game at most.

Source: the table of google-deepmind/dqn_zoo (dqn_zoo/atari_data.py, Apache-2.0), numbers only. It holds the random
column of Mnih et al. 2015 and Wang et al. 2016 and the human column of Wang et al. 2016 (no-op starts), as Rainbow,
Agent57 and rliable use them. Two other transcriptions agree: seungjaeryanlee/rldb, made from those two papers (57 human
and 57 random scores), and the appendix of Agent57 (Badia et al. 2020), except for one number.

- That number is the random score of VideoPinball: 16256.9 here, 0 in Agent57 and google-research/reincarnating_rl.
  With 16256.9 a point is worth 12.5 times as much: say which was used where VideoPinball is part of a mean.
- Human scores of Mnih et al. 2015 are other numbers in most of its 49 games (Pong 9.3, Breakout 31.8):
  not to be mixed in.
- The five games that Dopamine adds to these (AirRaid, Carnival, ElevatorAction, JourneyEscape, Pooyan) have no
  human score in these papers.
- Both columns were measured without sticky actions, which the v5 ids have by default.
"""

from typing import NamedTuple


class ReferenceScore(NamedTuple):
    """Mean return of one game, in points."""

    random: float
    human: float


ATARI_SCORES: dict[str, ReferenceScore] = {
    "Alien": ReferenceScore(227.8, 7127.7),
    "Amidar": ReferenceScore(5.8, 1719.5),
    "Assault": ReferenceScore(222.4, 742.0),
    "Asterix": ReferenceScore(210.0, 8503.3),
    "Asteroids": ReferenceScore(719.1, 47388.7),
    "Atlantis": ReferenceScore(12850.0, 29028.1),
    "BankHeist": ReferenceScore(14.2, 753.1),
    "BattleZone": ReferenceScore(2360.0, 37187.5),
    "BeamRider": ReferenceScore(363.9, 16926.5),
    "Berzerk": ReferenceScore(123.7, 2630.4),
    "Bowling": ReferenceScore(23.1, 160.7),
    "Boxing": ReferenceScore(0.1, 12.1),
    "Breakout": ReferenceScore(1.7, 30.5),
    "Centipede": ReferenceScore(2090.9, 12017.0),
    "ChopperCommand": ReferenceScore(811.0, 7387.8),
    "CrazyClimber": ReferenceScore(10780.5, 35829.4),
    "Defender": ReferenceScore(2874.5, 18688.9),
    "DemonAttack": ReferenceScore(152.1, 1971.0),
    "DoubleDunk": ReferenceScore(-18.6, -16.4),
    "Enduro": ReferenceScore(0.0, 860.5),
    "FishingDerby": ReferenceScore(-91.7, -38.7),
    "Freeway": ReferenceScore(0.0, 29.6),
    "Frostbite": ReferenceScore(65.2, 4334.7),
    "Gopher": ReferenceScore(257.6, 2412.5),
    "Gravitar": ReferenceScore(173.0, 3351.4),
    "Hero": ReferenceScore(1027.0, 30826.4),
    "IceHockey": ReferenceScore(-11.2, 0.9),
    "Jamesbond": ReferenceScore(29.0, 302.8),
    "Kangaroo": ReferenceScore(52.0, 3035.0),
    "Krull": ReferenceScore(1598.0, 2665.5),
    "KungFuMaster": ReferenceScore(258.5, 22736.3),
    "MontezumaRevenge": ReferenceScore(0.0, 4753.3),
    "MsPacman": ReferenceScore(307.3, 6951.6),
    "NameThisGame": ReferenceScore(2292.3, 8049.0),
    "Phoenix": ReferenceScore(761.4, 7242.6),
    "Pitfall": ReferenceScore(-229.4, 6463.7),
    "Pong": ReferenceScore(-20.7, 14.6),
    "PrivateEye": ReferenceScore(24.9, 69571.3),
    "Qbert": ReferenceScore(163.9, 13455.0),
    "Riverraid": ReferenceScore(1338.5, 17118.0),
    "RoadRunner": ReferenceScore(11.5, 7845.0),
    "Robotank": ReferenceScore(2.2, 11.9),
    "Seaquest": ReferenceScore(68.4, 42054.7),
    "Skiing": ReferenceScore(-17098.1, -4336.9),
    "Solaris": ReferenceScore(1236.3, 12326.7),
    "SpaceInvaders": ReferenceScore(148.0, 1668.7),
    "StarGunner": ReferenceScore(664.0, 10250.0),
    "Surround": ReferenceScore(-10.0, 6.5),
    "Tennis": ReferenceScore(-23.8, -8.3),
    "TimePilot": ReferenceScore(3568.0, 5229.2),
    "Tutankham": ReferenceScore(11.4, 167.6),
    "UpNDown": ReferenceScore(533.4, 11693.2),
    "Venture": ReferenceScore(0.0, 1187.5),
    "VideoPinball": ReferenceScore(16256.9, 17667.9),
    "WizardOfWor": ReferenceScore(563.5, 4756.5),
    "YarsRevenge": ReferenceScore(3092.9, 54576.9),
    "Zaxxon": ReferenceScore(32.5, 9173.3),
}
