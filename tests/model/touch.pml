/* SPDX-License-Identifier: Apache-2.0
   Copyright The kvtrie authors

   Touch words and high-water marks of lease slots, on x86-TSO store buffers.

   Rules (DESIGN.md): 19 touch; 2 and 10 for the lease under it. Claims: a touch lands on the page that
   was leased, never on what the page became; a page that is evicted has passed its last touch to its
   parent; a leased page is never retired, even when the lease is the first in its slot.

   C is a Live leaf below P. A worker leases C (slot 0, the first ever used: it raises the high-water
   mark), touches it with its stamp and drops the lease; it does so OPS times. The evictor runs rounds on
   C; a taker makes a new page of C when it is Free.

   word of C = state(3) | gen<<3      touch of C = gen | stamp<<2 (gen: whom the writer meant)

   Pan-run: -E

   Switches: each default is the protocol; another value is a mutant. */

#ifndef OPS
#define OPS 2
#endif
#ifndef ROUNDS
#define ROUNDS 2
#endif
#ifndef TOUCH         /* rule 19: 1 between verifying and dropping the lease; 0 before verifying; 2 after dropping */
#define TOUCH 1
#endif
#ifndef PASS          /* rule 19: 1 the evictor reads and passes the touch after Retiring; 0 reads it when it ranks;
                         2 when it has condemned */
#define PASS 1
#endif
#ifndef MARK_FIRST    /* rule 19: the high-water mark is stored before the first lease (0: after it) */
#define MARK_FIRST 1
#endif
#ifndef MARK_READ     /* rules 10, 19: 1 the evictor reads the mark after condemning; 0 before */
#define MARK_READ 1
#endif
#define FREE 0
#define WRITING 1
#define LIVE 3
#define COND 4
#define RETI 5
#define ST(x) ((x)&7)
#define GN(x) ((x)>>3)
#define MK(s,g) ((s)|((g)<<3))
hidden byte claim_touch_of_another_page, claim_lost_touch, claim_retired_while_leased;
#define WC 0
#define SLOT 1
#define MARK 2
#define TC 3
#define wc mem[WC]
byte mem[4];
byte tp = 0;                       /* touch of P: the greatest stamp passed on */
byte last = 0;                     /* ghost: stamp of the last touch of C's present generation */
bool using = false;                /* ghost */
chan sb = [4] of { byte, byte };
#define STORE(at,v) nfull(sb) -> sb!at,v
#define MFENCE empty(sb)
proctype Drain() { byte at, v; endl: do :: atomic { sb?at,v -> mem[at] = v; at = 0; v = 0 } od }

proctype Worker() { byte ops, x, g;
  do
  :: ops < OPS ->
     atomic { ops++; x = wc; if :: ST(x)==LIVE || ST(x)==COND -> g = GN(x) :: else -> goto next fi };
#if MARK_FIRST
     STORE(MARK,1);
#endif
     STORE(SLOT,g+1);
#if TOUCH==0
     STORE(TC, g|(ops<<2));
#endif
     atomic { MFENCE -> x = wc };
     if :: x==MK(LIVE,g)
        :: x==MK(COND,g) -> atomic { if :: wc==x -> wc = MK(LIVE,g) :: wc==MK(LIVE,g) :: else -> goto drop fi }
        :: else -> goto drop fi;
#if !MARK_FIRST
     STORE(MARK,1);
#endif
     using = true;
#if TOUCH==1
     atomic { STORE(TC, g|(ops<<2)); last = ops };
#endif
     using = false;
drop: STORE(SLOT,0);
#if TOUCH==2
     if :: x==MK(LIVE,g) -> STORE(TC, g|(ops<<2)) :: else fi;
#endif
next: atomic { x = 0; g = 0 }
  :: else -> break
  od
}
proctype Evictor() { byte r, n, g, t, s; bool keep;
  do
  :: r < ROUNDS -> r++;
#if PASS==0
     t = mem[TC];
#endif
#if !MARK_READ
     n = mem[MARK];
#endif
     atomic { if :: ST(wc)==LIVE -> g = GN(wc); wc = MK(COND,g) :: else -> goto next fi };
#if PASS==2
     t = mem[TC];
#endif
#if MARK_READ
     n = mem[MARK];
#endif
     if :: n > 0 -> s = mem[SLOT]; keep = (s==g+1) :: else fi;
     atomic { if :: !keep && wc==MK(COND,g) -> wc = MK(RETI,g);
                    assert(!using || claim_retired_while_leased)
                 :: else -> if :: wc==MK(COND,g) -> wc = MK(LIVE,g) :: else fi; goto next fi };
#if PASS==1
     t = mem[TC];
#endif
     atomic { if :: (t>>2) > tp -> tp = t>>2 :: else fi; assert(tp >= last || claim_lost_touch); last = 0 };
     wc = MK(FREE,g+1);
next: atomic { n = 0; g = 0; t = 0; s = 0; keep = false }
  :: else -> break
  od
}
/* the next owner of page C: a fresh stamp before Live */
proctype Taker() { byte g;
  atomic { ST(wc)==FREE -> g = GN(wc); wc = MK(WRITING,g) };
  mem[TC] = g;
  wc = MK(LIVE,g)
}
proctype Checker() { timeout ->
  assert(ST(wc)!=LIVE || (mem[TC]&3)==GN(wc) || claim_touch_of_another_page) }
init { atomic { wc = MK(LIVE,0);
  run Drain(); run Worker(); run Evictor(); run Taker(); run Checker() } }
