"""The words of two typical networks, which the model of words learns before it meets any of its own.

Part of the format since version 1. They are what `pack` wrote of a LeNet-5 in integers and of a fake-quantized
LeNet-300-100 before there was a primer, so that a small network's words take half the bytes.
"""

from __future__ import annotations

import base64

PRIMER = base64.b85decode(
  '01N^I6a@tV009&R0TcoRG6e+`00A-v0Wtytpa%2<00Hy^1_AT~0s`~{3IG8L1_25IkO2S$00A8x0tf(D0RaSs0fqsB0fPYn1f2smJOgb5{{g=M0b'
  'B$D3u|<LfB}I4hyjTKiUErOf&qg80RR912LeGs2LcBIKtKlqKtKlqK|u!sK|w(b00V6V#VrRtE(8AozW@SP0RaPq0c&&t2LeJu2LeJu2LcBIKtKl'
  'qKtKQi0RR912LeGs2LcBIKtKlqKtKlqK|u!sK|w(b04@Za%^N*G1OEZP00IFA0zyIu0zyIu0tW&>KnDUqKmY?Z0RaJH0S5vKK?A@H00dhE0S1Txi'
  '2;fMivfZGg8=~m000aCKLi>8!aM{20R#U5zW@bW1OWnw0f_+t0000C00aL40096119mhy00saK0{{b1MFs#20{{b2&H)Ah1OosA00saI0{{sDq5%'
  'j31^@wJ1^@wK00{s900NK(tO5W5tO5W400OK6WB>tV00002WC{QQ3IUJ-00aO59UTG>05t&t0b>CN0t!I`pbP*3BLV>c0RR9369EAMU;#k@15*J3'
  '0)hd90RaR60FuH4001^a00dA20RRC2000G20RaF30099200IF)00RL8000001ONbkLjVK;000050RRC300063K>z~*3;_%P00aR50003100VY1IR'
  'FG40RaX84gdty0k;7G1^@~G1ONjD01gQOq5%j31^@wJ1^@wK'
)
