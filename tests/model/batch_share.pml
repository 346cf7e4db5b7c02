/* SPDX-License-Identifier: Apache-2.0
   Copyright The kvtrie authors

   One page that three sequences of a batch use, until it is published or all have let it go; the sequences are
   called by three threads. It begins as the first one's, the others borrow it (worker_plugin/batch.h, B1 to B4).
   lease_moves.pml and worker_threads.pml have the leases.

   Claims: the page is not freed while a sequence uses it, and is freed just once; while it is unpublished and used,
   just one sequence owns it; who owns it publishes it, nobody else; at the end it is Live or Free.

   Each sequence publishes if the page is its own by then, or not, and is released. Private memory under the batch's
   lock; sequentially consistent.

   Pan-run: -E

   Switches: each default is the protocol; another value is a mutant. */

#ifndef LOCK           /* the batch's lock (0: none) */
#define LOCK 1
#endif
#ifndef HAND_OVER      /* B4: 1 to the first that uses it; 0 nobody, it is freed; 2 nobody, it is kept; 3 to all */
#define HAND_OVER 1
#endif
#ifndef TELL           /* B2: borrowers are told that it is published (0: they take it for their own at the release) */
#define TELL 1
#endif
#ifndef OWNER_ONLY     /* a borrower leaves the page alone (0: publishes it, too) */
#define OWNER_ONLY 1
#endif

#define FREE 0
#define PENDING 2
#define LIVE 3
#define PRIVATE 1      /* what a sequence thinks of the page */
#define PUBLISHED 2
hidden byte claim_used_page_freed, claim_freed_twice, claim_one_owner, claim_own_page, claim_page_lost;
byte st = PENDING; bool uses[3]; bool borrows[3]; byte knows[3]; bool lk; byte ended;

#define UNPUBLISHED_USE (st==PENDING && (uses[0] || uses[1] || uses[2]))
#define OWNERS ((uses[0] && !borrows[0]) + (uses[1] && !borrows[1]) + (uses[2] && !borrows[2]))
inline acquire() {
#if LOCK
  atomic { !lk -> lk = true }
#else
  skip
#endif
}
inline leave() {
#if LOCK
  atomic { assert(!UNPUBLISHED_USE || OWNERS==1 || claim_one_owner); lk = false }
#else
  skip
#endif
}
/* of those after me, in the order of the batch: member `m`, if it uses the page and I own it */
#define TAKES(m) (m!=me && uses[m])
proctype Sequence(byte me) { byte m; bool given;
  if
  :: true ->
     acquire();
     if
     :: knows[me]==PRIVATE && (!OWNER_ONLY || !borrows[me]) ->
        atomic { assert((st==PENDING && !borrows[me]) || claim_own_page); st = LIVE; knows[me] = PUBLISHED };
#if TELL
        m = 0; do :: m < 3 -> if :: TAKES(m) -> knows[m] = PUBLISHED :: else fi; m++ :: else -> break od; m = 0;
#endif
     :: else
     fi;
     leave()
  :: true                                       /* its engine gave up */
  fi;
  /* ---- release */
  acquire();
  if
  :: !borrows[me] && knows[me]==PRIVATE ->
#if HAND_OVER!=0
     m = 0;
     do :: m < 3 ->
           if :: TAKES(m) && (!given || HAND_OVER==3) -> given = true;
                 if :: HAND_OVER!=2 -> borrows[m] = false :: else fi
              :: else fi; m++
        :: else -> break od;
     m = 0;
#endif
     if :: !given -> atomic {
             assert(!(TAKES(0) || TAKES(1) || TAKES(2)) || claim_used_page_freed);
             assert(st!=FREE || claim_freed_twice); assert(st!=LIVE || claim_own_page); st = FREE }
        :: else fi
  :: !borrows[me] && knows[me]==PUBLISHED ->    /* nobody's: each user has it by its own lease */
     m = 0; do :: m < 3 -> if :: TAKES(m) -> borrows[m] = false :: else fi; m++
        :: else -> break od; m = 0
  :: else
  fi;
  atomic { uses[me] = false; borrows[me] = true; given = false };
  leave();
  ended++
}
active proctype Check() { timeout -> assert((ended==3 && st!=PENDING) || claim_page_lost) }
init { atomic { uses[0] = true; uses[1] = true; uses[2] = true; borrows[1] = true; borrows[2] = true;
  knows[0] = PRIVATE; knows[1] = PRIVATE; knows[2] = PRIVATE;
  run Sequence(0); run Sequence(1); run Sequence(2) } }
