/* SPDX-License-Identifier: Apache-2.0
   Copyright The kvtrie authors

   The index: two buckets of one stripe for each hash, insertion under the stripe lock into either,
   removal without a lock by the page's owner, readers without locks.

   Rules (DESIGN.md): 4 look, then insert under the lock; 12 removal by one compare-and-swap; 13 the
   sweep of a dead holder's stripe runs at the same time; the index's bucket rule (readers follow it without missing, a removal cannot break it, every probe is bounded).
   Claims: a reader finds a page whose entry was there during its whole lookup; the index never has two
   entries of one key (Retiring counts as absent); an entry that was inserted stays until its own page's owner takes it out; a page
   that found no room is not in the index (it stays private).

   Pages 0 and 1 have key 0 (duplicates of each other), page 2 has key 1; both keys have the same two
   buckets of SIZE entries. Owners insert and remove their page again and again; an entry is page + 1.
   Sequentially consistent: entries are inserted by a release store that publishes nothing but the page
   number (the reader checks the descriptor), removed by compare-and-swap.

   Switches: each default is the protocol; another value is a mutant. */

#ifndef SIZE           /* entries of a bucket */
#define SIZE 1
#endif
#ifndef OPS            /* insertions of each owner */
#define OPS 2
#endif
#ifndef READ_BOTH      /* a reader looks at both buckets (0: at the first only) */
#define READ_BOTH 1
#endif
#ifndef STOP_AT_EMPTY  /* 1 = a reader stops at the first empty entry */
#define STOP_AT_EMPTY 0
#endif
#ifndef MOVE_UP        /* 1 = a removal from the first bucket moves an entry of the second up */
#define MOVE_UP 0
#endif
#ifndef LOCK           /* insertion under the stripe lock */
#define LOCK 1
#endif
#ifndef LOOK_BOTH      /* the look for duplicates covers both buckets (0: only up to the entry taken) */
#define LOOK_BOTH 1
#endif
#ifndef REMOVE_CAS     /* removal by compare-and-swap (0: a store; a sweep may have been there before) */
#define REMOVE_CAS 1
#endif
#ifndef REMOVE_OWNER   /* removal only by the page's owner (0: a reader takes out what it thinks stale) */
#define REMOVE_OWNER 1
#endif
#define N (2*SIZE)     /* entries of both buckets: 0..SIZE-1 the first */
#define KEY(p) ((p)/2)
#define NO 255

hidden byte claim_missed, claim_two_of_a_key, claim_entry_gone;
byte idx[N]; bool lk;
bool retiring[3];
bool in_[3];                          /* ghost: the page's entry is in and has to stay */
byte stable;                          /* ghost: mask of pages that were in since the lookup began */

/* page p: insert, use, remove */
proctype Owner(byte p) { byte ops, i, e; bool dup;
  do
  :: ops < OPS ->
     ops++;
#if LOCK
     atomic { !lk -> lk = true };
#endif
     atomic { e = NO; i = 0; dup = false };
     do :: i < N -> atomic {
           if :: idx[i]!=0 && KEY(idx[i]-1)==KEY(p) && !retiring[idx[i]-1] -> dup = true
              :: idx[i]==0 && e==NO -> e = i
              :: else fi;
           i++;
#if !LOOK_BOTH
           if :: e != NO -> break :: else fi
#endif
           }
        :: else -> break od;
     if
     :: !dup && e != NO ->
        atomic { idx[e] = p+1; in_[p] = true; i = 0;
          do :: i < N -> assert(i==e || idx[i]==0 || KEY(idx[i]-1)!=KEY(p) || retiring[idx[i]-1] || claim_two_of_a_key); i++
             :: else -> break od; i = 0 };
#if LOCK
        lk = false;
#endif
        /* ... the page is Pending, Live, and at last past return: Retiring */
        atomic { i = 0; do :: i < N && idx[i]!=p+1 -> i++ :: else -> break od;
          assert(i < N || claim_entry_gone);
          e = i; retiring[p] = true; in_[p] = false; stable = stable & ~(1<<p); i = 0 };
#if REMOVE_CAS
        atomic { if :: idx[e]==p+1 -> idx[e] = 0 :: else fi };    /* else a sweep was faster */
#else
        idx[e] = 0;
#endif
#if MOVE_UP
        if :: e < SIZE && idx[SIZE]!=0 ->
              atomic { i = idx[SIZE]; idx[SIZE] = 0 };            /* out of the second, into the first */
              idx[e] = i
           :: else fi;
#endif
        retiring[p] = false
     :: else ->
#if LOCK
        lk = false
#else
        skip
#endif
     fi;
     atomic { e = 0; dup = false; i = 0 }
  :: else -> break
  od
}
/* recovery of a dead holder's stripe, once: entries of Retiring pages go (rule 13) */
proctype Sweep() { byte i;
#if LOCK
  atomic { !lk -> lk = true };
#endif
  do :: i < N -> atomic { if :: idx[i]!=0 && retiring[idx[i]-1] -> idx[i] = 0 :: else fi; i++ } :: else -> break od;
#if LOCK
  lk = false
#endif
}
/* looks up key k once, entry by entry, with no lock */
proctype Reader() { byte k, i, e, found = NO;
  atomic { if :: k = 0 :: k = 1 fi;
    stable = 0; i = 0;
    do :: i < 3 -> if :: in_[i] && KEY(i)==k -> stable = stable | (1<<i) :: else fi; i++ :: else -> break od;
    i = 0 };
  do
  :: i < (READ_BOTH -> N : SIZE) && found==NO ->
     atomic { e = idx[i];
       if :: e!=0 && KEY(e-1)==k -> found = e-1
          :: e==0 && STOP_AT_EMPTY -> break
          :: else fi };
     i++
  :: else -> break
  od;
#if !REMOVE_OWNER
  /* it believes that what it found is stale (it looked before the page was used again) */
  atomic { if :: found!=NO && idx[i-1]==found+1 -> idx[i-1] = 0 :: else fi }
#endif
  assert(found!=NO || stable==0 || claim_missed)
}
init { atomic { run Owner(0); run Owner(1); run Owner(2); run Sweep(); run Reader() } }
