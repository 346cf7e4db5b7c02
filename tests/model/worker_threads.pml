/* SPDX-License-Identifier: Apache-2.0
   Copyright The kvtrie authors

   Two threads of one worker with its lease slots, each thread with its own x86-TSO store buffer, against
   rounds of the evictor.

   Rules (DESIGN.md): 2 lease, 6 publish (the slot of every sequence of this worker), 7 moves with one
   spare slot a thread. Claim: a page that a sequence uses is never retired.

   Pages: P and Q are Live leaves at the start; C is a Pending page of the worker's own below P.
   The scenario is chosen at the start:
     slots   each thread takes a slot from the worker's pool, leases a page (one P, one Q), moves to the
             other page through its spare slot, releases, returns the slot
     share   sequence 1 (thread 0) and 2 (thread 1) both extend to C; thread 0 publishes C, moving both
             leases, and releases; thread 1 meanwhile releases 2 and begins a new sequence on Q in the
             same slot
   Pool flags, the lock and the list of C's users are memory of the process: buffered like the rest.

   Switches: each default is the protocol; another value is a mutant unless it says "variant". */

#ifndef ROUNDS
#define ROUNDS 2
#endif
#ifndef FENCE        /* rules 2, 7 */
#define FENCE 1
#endif
#ifndef SPARE        /* rule 7: one spare slot a thread (0: one for both) */
#define SPARE 1
#endif
#ifndef TAKE_CAS     /* a slot is taken from the pool by compare-and-swap (0: load, then store) */
#define TAKE_CAS 1
#endif
#ifndef CLEAR_FIRST  /* a slot is cleared before it goes back to the pool (0: after) */
#define CLEAR_FIRST 1
#endif
#ifndef SHARED       /* rule 6, another sequence's slot: 1 moved under the worker's own lock; 0 moved without;
                        2 (variant) moved by compare-and-swap from P's handle to C's */
#define SHARED 1
#endif

#define FREE 0
#define PENDING 2
#define LIVE 3
#define COND 4
#define RETI 5
#define P 1
#define Q 2
#define C 3
#define NONE 0
#define SL(i) (4+(i))          /* slots 0..3: handle (NONE, P, Q, C); 2 and 3 are the spare ones */
#define TAKEN(i) (8+(i))       /* pool flags of slots 0..3 */
#define LOCK 12
#define USES_C 13              /* sequence 2 is on the list of C's users */
hidden byte claim_used_page_retired, claim_child_of_retired, claim_two_sequences_one_slot;
byte mem[14]; byte use[4]; byte owns[4];        /* ghost: users of a page, sequences of a slot */
bool share;
chan sb[2] = [4] of { byte, byte };
#define STORE(at,v) nfull(sb[t]) -> sb[t]!at,v
#define MFENCE empty(sb[t])
/* a load sees the thread's own buffered stores: only used where the buffer is empty or has none for it */
proctype Drain(byte t) { byte at, v; endl: do :: atomic { sb[t]?at,v -> mem[at] = v; at = 0; v = 0 } od }

inline acquire(s,pg) {
  STORE(SL(s),pg);
  atomic { if :: FENCE -> MFENCE :: !FENCE fi; x = mem[pg] };
  if :: x == LIVE -> ok = true
     :: x == COND -> atomic { MFENCE ->
          if :: mem[pg]==COND -> mem[pg] = LIVE; ok = true :: mem[pg]==LIVE -> ok = true :: else -> ok = false fi }
     :: else -> ok = false fi;
  x = 0
}
inline take_slot() {
#if TAKE_CAS
  atomic { MFENCE -> if :: !mem[TAKEN(0)] -> s = 0 :: !mem[TAKEN(1)] -> s = 1 fi; mem[TAKEN(s)] = 1 };
#else
  atomic { if :: !mem[TAKEN(0)] -> s = 0 :: !mem[TAKEN(1)] -> s = 1 fi };
  STORE(TAKEN(s),1);
#endif
  atomic { owns[s]++; assert(owns[s]==1 || claim_two_sequences_one_slot) }
}
inline return_slot() {
  owns[s]--;
#if CLEAR_FIRST
  STORE(SL(s),NONE); STORE(TAKEN(s),0)
#else
  STORE(TAKEN(s),0); STORE(SL(s),NONE)
#endif
}
proctype Slots(byte t) { byte s, spare, x; bool ok;
  byte first, other;
  atomic { spare = (SPARE -> 2+t : 2); first = (t -> Q : P); other = (t -> P : Q) };
  take_slot();
  acquire(s,first);
  if :: ok ->
        use[first]++;
        /* move: acquire in the spare slot, clear the old one, which is the spare from now on */
        acquire(spare,other);
        if :: ok -> atomic { use[other]++; use[first]-- };
              STORE(SL(s),NONE);
              use[other]--; STORE(SL(spare),NONE)
           :: else -> STORE(SL(spare),NONE); use[first]--
        fi
     :: else fi;
  return_slot()
}
#define ACQUIRE_LOCK atomic { MFENCE && !mem[LOCK] -> mem[LOCK] = 1 }
proctype Publisher() { byte t = 0;
#if SHARED==1
  ACQUIRE_LOCK;
  if :: mem[USES_C] -> STORE(SL(1),C) :: else fi;
  STORE(C,LIVE);
  STORE(LOCK,0);
#elif SHARED==2
  if :: mem[USES_C] -> atomic { MFENCE -> if :: mem[SL(1)]==P -> mem[SL(1)] = C :: else fi } :: else fi;
  STORE(C,LIVE);
#else
  if :: mem[USES_C] -> STORE(SL(1),C) :: else fi;
  STORE(C,LIVE);
#endif
  atomic { use[C]--; use[P]-- };
  STORE(SL(0),NONE)
}
proctype Releaser() { byte t = 1, x; bool ok;
#if SHARED==1
  ACQUIRE_LOCK;
#endif
  atomic { use[C]--; use[P]-- };
  STORE(USES_C,0);
  STORE(SL(1),NONE);
#if SHARED==1
  STORE(LOCK,0);
#endif
  acquire(1,Q);
  if :: ok -> use[Q]++; use[Q]-- :: else fi;
  STORE(SL(1),NONE)
}

#define RESC(pg) if :: mem[pg]==COND -> mem[pg] = LIVE :: else fi; kept[pg] = true
inline retire(pg) {
  atomic { if :: batch[pg] && !kept[pg] && mem[pg]==COND ->
                 assert(use[pg]==0 || claim_used_page_retired);
                 assert(pg!=P || !share || !(mem[C]==LIVE || mem[C]==PENDING || mem[C]==COND) || claim_child_of_retired);
                 mem[pg] = FREE
              :: else -> kept[pg] = true fi } }
proctype Evictor() { byte r, i, y; bool batch[4]; bool kept[4];
  do
  :: r < ROUNDS -> r++;
     i = 1;
     do :: i < 4 -> atomic { if :: mem[i]==LIVE -> mem[i] = COND; batch[i] = true :: true fi; i++ }
        :: else -> break od;
     i = 0;
     do :: i < 4 -> y = mem[SL(i)]; atomic { if :: y!=NONE && batch[y] -> RESC(y) :: else fi; i++; y = 0 }
        :: else -> break od;
     atomic { if :: share && batch[P] && !batch[C] && (mem[C]==LIVE || mem[C]==PENDING) -> RESC(P) :: else fi };
     retire(C);
     atomic { if :: share && batch[P] && batch[C] && kept[C] -> RESC(P) :: else fi };
     retire(P); retire(Q);
     atomic { i = 1;
       do :: i < 4 -> if :: mem[i]==COND -> mem[i] = LIVE :: else fi; batch[i] = false; kept[i] = false; i++
          :: else -> break od; i = 0 }
  :: else -> break
  od
}
init { atomic {
  mem[P] = LIVE; mem[Q] = LIVE; mem[TAKEN(2)] = 1; mem[TAKEN(3)] = 1;
  run Drain(0); run Drain(1);
  if :: share = false; run Slots(0); run Slots(1)
     :: share = true; mem[C] = PENDING; mem[SL(0)] = C; mem[SL(1)] = P; mem[USES_C] = 1;
        use[P] = 2; use[C] = 2; run Publisher(); run Releaser() fi;
  run Evictor() } }
