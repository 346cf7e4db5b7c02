/* SPDX-License-Identifier: Apache-2.0
   Copyright The kvtrie authors

   Moves of a lease by one worker with several slots, on an x86-TSO store buffer, against rounds of the
   evictor. P is a Live page, C its child (at the start Live, or Pending and the worker's own). A round
   may condemn both, child first.

   Rules (DESIGN.md): 6 publish (every sequence that has the page as its deepest), 7 other moves, 8 abort.
   Claim: what a sequence uses is never retired (P while useP, C while useC).

   The scenario and the order in which the evictor meets the two slots are chosen at the start:
     fork      sequence 1 (slot A holds C) is forked into slot B, then sequence 1 is released
     re-target the sequence holds P in slot A and wants C, which is Live and somebody else's
     abort     the lease stands already on C, a Pending page of one's own, which is given up
     batch     C is Pending and used by sequence 1 (slot A, on C) and 2 (slot B, still on P);
               1 publishes C and is released, 2 goes on with C
   Simplification: a recycled page is not taken again (lease_evict.pml has generations); the evictor
   looks for children itself (lease_evict.pml has the counters).

   Switches: each default is the protocol; another value is a mutant. */

#ifndef ROUNDS
#define ROUNDS 2
#endif
#ifndef FENCE          /* rules 2, 7: full fence between a lease store and its re-check */
#define FENCE 1
#endif
#ifndef FORK           /* rule 7: the fork acquires by rule 2 (0: copies the lease) */
#define FORK 1
#endif
#ifndef RETARGET       /* rule 7: 1 acquire in a second slot, then clear the old one;
                          0 overwrite the slot, on failure write P back; 2 acquire in a second slot, copy
                          to the old slot, clear the second; 3 overwrite, on failure acquire P by rule 2 */
#define RETARGET 1
#endif
#ifndef ABORT          /* rule 8: 1 acquire P, then free C; 0 store P, free C; 2 free C, store P */
#define ABORT 1
#endif
#ifndef SHARE          /* rule 6: 1 all slots that use C move before its Live store; 0 only the
                          publisher's; 2 the others after the Live store */
#define SHARE 1
#endif

#define FREE 0
#define PENDING 2
#define LIVE 3
#define COND 4
#define RETI 5
#define P 1
#define C 2
#define NONE 0
#define FORKS 1
#define RETARGETS 2
#define ABORTS 3
#define BATCH 4

hidden byte claim_used_page_retired, claim_child_of_retired, claim_acquire_of_leased, claim_used_page;
byte scen, a, b;                    /* slots A and B, in either order */
byte mem[6];                        /* 1 state of P, 2 state of C, 4..5 slots: NONE, P or C */
bool useP, useC;                    /* ghost */
#define SL(i) (4+(i))
chan sb = [3] of { byte, byte };
#define STORE(at,v) nfull(sb) -> sb!at,v
proctype Drain() { byte at, v; endl: do :: atomic { sb?at,v -> mem[at] = v; at = 0; v = 0 } od }

/* rule 2 for page pg in slot i */
inline acquire(i,pg) {
  STORE(SL(i),pg);
  atomic { if :: FENCE -> empty(sb) :: !FENCE fi; x = mem[pg] };
  if :: x == LIVE -> ok = true
     :: x == COND -> atomic { empty(sb) ->
          if :: mem[pg]==COND -> mem[pg] = LIVE; ok = true
             :: mem[pg]==LIVE -> ok = true
             :: else -> ok = false fi }
     :: else -> ok = false fi;
  x = 0
}
#define USED_OK(u,pg) (!(u) || mem[pg]==LIVE || mem[pg]==COND || (pg==C && mem[pg]==PENDING))
#define VALID assert((USED_OK(useP,P) && USED_OK(useC,C)) || claim_used_page)

proctype W() { byte x; bool ok;
  if
  :: scen==FORKS ->
     atomic { useP = true; useC = true };
#if FORK
     acquire(b,C); assert(ok || claim_acquire_of_leased);
#else
     STORE(SL(b),C);
#endif
     STORE(SL(a),NONE)
  :: scen==RETARGETS ->
     useP = true;
#if RETARGET==1
     acquire(b,C); if :: ok -> useC = true; STORE(SL(a),NONE) :: else -> STORE(SL(b),NONE) fi
#elif RETARGET==2
     acquire(b,C); if :: ok -> useC = true; STORE(SL(a),C) :: else fi; STORE(SL(b),NONE)
#elif RETARGET==3
     acquire(a,C); if :: ok -> useC = true :: else -> acquire(a,P); assert(ok || claim_acquire_of_leased) fi
#else
     acquire(a,C); if :: ok -> useC = true :: else -> STORE(SL(a),P) fi
#endif
  :: scen==ABORTS ->
     useP = true;
#if ABORT==1
     acquire(b,P); assert(ok || claim_acquire_of_leased); STORE(SL(a),NONE); STORE(C,FREE)
#elif ABORT==0
     STORE(SL(a),P); STORE(C,FREE)
#else
     STORE(C,FREE); STORE(SL(a),P)
#endif
  :: scen==BATCH ->
     atomic { useP = true; useC = true };
#if SHARE==1
     STORE(SL(b),C);
#endif
     STORE(C,LIVE);
#if SHARE==2
     STORE(SL(b),C);
#endif
     STORE(SL(a),NONE)
  fi;
  VALID; empty(sb); VALID;
  atomic { useP = false; useC = false };
  STORE(SL(a),NONE); STORE(SL(b),NONE)
}

#define RESC(pg,rr) if :: mem[pg]==COND -> mem[pg] = LIVE :: else fi; rr = true
#define LIVE_KID (mem[C]==LIVE || mem[C]==PENDING)
proctype E() { byte i, r; bool bC, bP, rC, rP;
  do
  :: r < ROUNDS -> r++;
     atomic { if :: mem[C]==LIVE -> mem[C] = COND; bC = true :: bC = false fi };
     atomic { if :: mem[P]==LIVE -> mem[P] = COND; bP = true :: bP = false fi };
     i = 0;
     do :: i < 2 -> atomic { if :: bC && mem[SL(i)]==C -> RESC(C,rC) :: else fi;
                             if :: bP && mem[SL(i)]==P -> RESC(P,rP) :: else fi; i++ }
        :: else -> break od;
     atomic { if :: bP && LIVE_KID -> RESC(P,rP) :: else fi };
     atomic { if :: bC && !rC && mem[C]==COND -> assert(!useC || claim_used_page_retired); mem[C] = RETI
                 :: else -> rC = true fi };
     if :: !rC -> mem[C] = FREE
        :: bC && rC -> atomic { if :: bP -> RESC(P,rP) :: else fi }
        :: else fi;
     atomic { if :: bP && !rP && mem[P]==COND -> assert(!useP || claim_used_page_retired);
                    assert(!LIVE_KID || claim_child_of_retired); mem[P] = RETI
                 :: else -> rP = true fi };
     if :: bP && !rP -> mem[P] = FREE :: else fi;
     atomic { if :: mem[P]==COND -> mem[P] = LIVE :: else fi; if :: mem[C]==COND -> mem[C] = LIVE :: else fi;
              bC = false; bP = false; rC = false; rP = false }
  :: else -> break
  od
}
init { atomic {
  if :: a = 0; b = 1 :: a = 1; b = 0 fi;
  if :: scen = FORKS     -> mem[C] = LIVE; mem[SL(a)] = C
     :: scen = RETARGETS -> mem[C] = LIVE; mem[SL(a)] = P
     :: scen = ABORTS    -> mem[C] = PENDING; mem[SL(a)] = C
     :: scen = BATCH     -> mem[C] = PENDING; mem[SL(a)] = C; mem[SL(b)] = P fi;
  mem[P] = LIVE;
  run Drain(); run W(); run E() } }
