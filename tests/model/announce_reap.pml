/* SPDX-License-Identifier: Apache-2.0
   Copyright The kvtrie authors

   Announce, publish, abort, duplicates, the index and its stripe lock, eviction, SIGKILL of a worker and
   of the coordinator at any step (inside recovery too), reaping, the EOWNERDEAD sweep, adoption.

   Rules (DESIGN.md): 3 parent of a Pending page, 4 announce, 6 parents first, 8 abort, 9 duplicates,
   12 recycling, 13 sweep, 14 reap, 15 adopt.
   Claims: at any time, one canonical page a key in the index, held pages stay what they are, a retired
   page has no child and no holder, a Live page's parent is Live or Condemned. At quiescence: every page
   is Free or Live, every Live page is in the index exactly once with a Live parent, no two Live pages
   share a key, no stale entry, no lease, nobody sleeps on a lock.

   Both workers want the token path (a,b): key 0 = (a), key 1 = (a,b). One bucket of two entries a key
   and one stripe for all (the worst case). A reader may try any page as its candidate: the index matters
   here for uniqueness, reachability and stale entries (index_buckets.pml has the buckets).
   Over-approximation: a batch is any one or two Live pages. Simplifications: sequentially consistent
   memory, children by one look at the truth and all slots read in one step; lease_evict.pml has store
   buffers, announce counters and the scans step by step. Locals of a dead process are cleared, so its
   states merge. The workers are symmetric, so the one that dies is worker 0.

   word = state(3) | owner(2)<<3 | gen<<5      handle = page(3) | gen<<3, page 7 = root or none

   Pan-run: -E

   Switches: each default is the protocol; another value is a mutant unless it says "variant". */

#ifndef NP               /* pages */
#define NP 3
#endif
#ifndef OPS              /* requests of each worker */
#define OPS 1
#endif
#ifndef ROUNDS           /* rounds of one coordinator */
#define ROUNDS 1
#endif
#ifndef ONE_WORKER       /* variant 1: worker 0 only */
#define ONE_WORKER 0
#endif
#ifndef KW               /* worker 0 may be killed */
#define KW 1
#endif
#ifndef KC               /* how often the coordinator may be killed */
#define KC 0
#endif
#ifndef INIT             /* pages of the path that are Live at the start */
#define INIT 1
#endif
#ifndef ABORT            /* variant 0: nobody aborts */
#define ABORT 1
#endif
#ifndef LATE             /* rule 9, variant 0: a private page is not looked at again at publish time */
#define LATE 0
#endif
#ifndef PARENT_ANY       /* rule 3: 1 = under somebody else's Pending page */
#define PARENT_ANY 0
#endif
#ifndef STRIPE_LOCK      /* rule 4: duplicate check and insertion under the stripe lock (0: none) */
#define STRIPE_LOCK 1
#endif
#ifndef LOOK             /* rule 4: the look for a page of the same key (0: none) */
#define LOOK 1
#endif
#ifndef INDEX_FIRST      /* rule 4: 1 = index entry before the Pending store (the sweep makes up for it);
                            2 = Pending only after the index entry and the lock */
#define INDEX_FIRST 0
#endif
#ifndef COND_ABSENT      /* rule 4: 1 = the duplicate check takes a Condemned page for absent */
#define COND_ABSENT 0
#endif
#ifndef PARENTS_FIRST    /* rule 6: parents become Live first (0: children) */
#define PARENTS_FIRST 1
#endif
#ifndef ABORT_CHILD_FIRST /* rule 8, variant 0: parents first */
#define ABORT_CHILD_FIRST 1
#endif
#ifndef SUPERSEDE        /* rule 9: 1 = the second takes over the first's entry while that is Pending */
#define SUPERSEDE 0
#endif
#ifndef FREE_FIRST       /* rules 8, 12: 1 = Free before the index entry is out */
#define FREE_FIRST 0
#endif
#ifndef UNINDEX_EARLY    /* rule 12: 1 = the entry is removed while the page is Condemned */
#define UNINDEX_EARLY 0
#endif
#ifndef ROBUST           /* rule 13: 0 = a plain mutex */
#define ROBUST 1
#endif
#ifndef SWEEP            /* rule 13: the sweep after EOWNERDEAD (needed with INDEX_FIRST; else removal is exact) */
#define SWEEP 1
#endif
#ifndef SWEEP_PENDING    /* rule 13: 1 = the sweep also removes Pending entries */
#define SWEEP_PENDING 0
#endif
#ifndef SWEEP_COND       /* rule 13: 1 = the sweep also removes Condemned entries */
#define SWEEP_COND 0
#endif
#ifndef REAP_WRITING     /* rule 14: Writing pages are freed too */
#define REAP_WRITING 1
#endif
#ifndef REAP_LEASE       /* rule 14: leases are dropped too */
#define REAP_LEASE 1
#endif
#ifndef REAP_MARK_LAST   /* rule 14: the slot is given up last (0: first) */
#define REAP_MARK_LAST 1
#endif
#ifndef ADOPT_COND       /* rule 15: Condemned to Live (0: left) */
#define ADOPT_COND 1
#endif
#ifndef ADOPT_RETI       /* rule 15: Retiring is finished (0: left; 2: back to Live) */
#define ADOPT_RETI 1
#endif

#define FREE 0
#define WRITING 1
#define PENDING 2
#define LIVE 3
#define COND 4
#define RETI 5
#define NONE 7
#define ST(w) ((w)&7)
#define OW(w) (((w)>>3)&3)
#define GN(w) ((w)>>5)
#define MK(s,o,g) ((s)|((o)<<3)|((g)<<5))
#define PG(h) ((h)&7)
#define HG(h) ((h)>>3)
#define H(p,g) ((p)|((g)<<3))

byte wd[NP]; byte par[NP]; byte kk[NP];
byte slot[2];
byte idx[4];                  /* idx[key*2+e] */
byte lk = 0;                  /* 0 free, 1..2 worker + 1, 3.. coordinator incarnation + 2 */
bool alive[2]; bool ended[2]; bool reaped[2];
byte calive = 1;              /* the coordinator's incarnation */
byte hold[2];                 /* ghost: mask of the pages that the worker believes it holds */
bool kill_worker; byte kill_coordinator;

/* names of the claims, for the report; always 0 */
hidden byte claim_unique_in_index, claim_held_page, claim_parent, claim_child_of_retired, claim_own_page;
hidden byte claim_recycled_by_owner, claim_page_lost, claim_reachable_once, claim_unique_live;
hidden byte claim_stale_entry, claim_lease_left, claim_stuck;

#define HOLDER_DEAD ((lk==1 && !alive[0]) || (lk==2 && !alive[1]) || (lk>=3 && lk-2 != calive))
#define LIVE_OR_COND(x) (ST(x)==LIVE || ST(x)==COND)
#define PARENT_OK(p) (PG(par[p])==NONE || (GN(wd[PG(par[p])])==HG(par[p]) && LIVE_OR_COND(wd[PG(par[p])])))

/* s: next entry to sweep; 9 = the lock was clean */
#define SWEPT(x) (ST(x)==FREE || ST(x)==WRITING || ST(x)==RETI || \
                  (SWEEP_PENDING && ST(x)==PENDING) || (SWEEP_COND && ST(x)==COND))
inline lock(me) {
#if STRIPE_LOCK
  atomic { (lk==0 || (ROBUST && HOLDER_DEAD)) -> if :: lk==0 -> s = 9 :: else -> s = 0 fi; lk = me };
#if SWEEP
  do :: s < 4 -> atomic { if :: idx[s]!=NONE && (SWEPT(wd[idx[s]]) || kk[idx[s]]!=s/2) -> idx[s] = NONE :: else fi; s++ }
     :: else -> break od;
#endif
  s = 0
#else
  skip
#endif
}
inline unlock() {
#if STRIPE_LOCK
  lk = 0
#else
  skip
#endif
}
/* removal: one compare-and-swap {tag, page} to 0 by the page's present owner, without the stripe lock */
inline unindex(p) { atomic {
  if :: idx[kk[p]*2]==p -> idx[kk[p]*2] = NONE :: else fi;
  if :: idx[kk[p]*2+1]==p -> idx[kk[p]*2+1] = NONE :: else fi } }

#define CANON(q) (ST(wd[q])==PENDING || ST(wd[q])==LIVE || (!COND_ABSENT && ST(wd[q])==COND))
#define SAME(q,p) (q!=NONE && q!=p && CANON(q) && kk[q]==kk[p] && par[q]==par[p])
inline any_page(v) {
  if :: v = 0 :: v = 1
#if NP>2
     :: v = 2
#endif
#if NP>3
     :: v = 3
#endif
     :: v = NONE fi
}
/* the canonical page of f's key, under the lock: c = its entry or NONE; then a free entry: x, 9 = full */
inline find_same(f,d) {
  atomic { if :: SAME(idx[d*2],f) -> c = d*2
              :: SAME(idx[d*2+1],f) -> c = d*2+1 :: else -> c = NONE fi;
#if !LOOK
           c = NONE
#endif
  } }
inline find_room(f,d) {
  atomic { if :: idx[d*2]==NONE || idx[d*2]==f -> x = d*2
              :: idx[d*2+1]==NONE || idx[d*2+1]==f -> x = d*2+1
              :: else -> x = 9 fi } }
#define OWN_PENDING(d) (wd[PG(h[d])]==MK(PENDING,w,HG(h[d])))

/* pst[d]: 0 none, 1 private (Writing), 2 Pending, 3 held Live */
proctype Worker(byte w) {
  byte ops, k, d, c, x, f, s; byte h[2]; byte pst[2];
  {
  do
  :: ops < OPS && !(ONE_WORKER && w==1) ->
     ops++;
     /* ---- begin */
     do
     :: k < 2 ->
        atomic { any_page(c); if :: c==NONE -> goto walked :: else fi;
          x = wd[c]; if :: LIVE_OR_COND(x) :: else -> goto walked fi };
        atomic { if :: k==0 -> f = NONE :: else -> f = h[0] fi;
          if :: par[c]==f && kk[c]==k :: else -> goto walked fi;
          h[k] = H(c,GN(x)); k++; c = 0; x = 0; f = 0 }
     :: else -> break od;
walked: atomic { c = 0; x = 0; f = 0 };
     /* ---- lease */
     do
     :: k == 0 -> atomic { slot[w] = NONE; goto have }
     :: else ->
        slot[w] = h[k-1];
        atomic { x = wd[PG(h[k-1])];
          if :: x == MK(LIVE,0,HG(h[k-1])) -> goto got
             :: x == MK(COND,0,HG(h[k-1]))
             :: else -> x = 0; k--; h[k] = 0; goto again fi };
        atomic {
          if :: wd[PG(h[k-1])] == x -> wd[PG(h[k-1])] = MK(LIVE,0,GN(x));
                assert(PARENT_OK(PG(h[k-1])) || claim_parent); goto got
             :: wd[PG(h[k-1])] == MK(LIVE,0,GN(x)) -> goto got
             :: else -> x = 0; k--; h[k] = 0 fi };
again:  skip
     od;
got: atomic { x = 0; d = 0;
       do :: d < k -> hold[w] = hold[w] | (1<<PG(h[d])); pst[d] = 3;
             assert((GN(wd[PG(h[d])])==HG(h[d]) && LIVE_OR_COND(wd[PG(h[d])]) && kk[PG(h[d])]==d
                     && par[PG(h[d])]==(d==0 -> NONE : h[0])) || claim_held_page); d++
          :: else -> break od; d = 0 };
have: d = k;
     /* ---- allocate and announce what is missing */
     do
     :: d < 2 ->
        atomic { any_page(f); if :: f==NONE -> goto reserved :: else fi;
          if :: ST(wd[f])==FREE -> x = GN(wd[f]); wd[f] = MK(WRITING,w,x); h[d] = H(f,x); pst[d] = 1
             :: else -> goto reserved fi };
        /* the parent: the root, a Live page under my lease, my own Pending page; else it stays private */
        atomic { if :: d==0 -> par[f] = NONE
                    :: d==1 && pst[0]>=2 -> par[f] = h[0]
#if PARENT_ANY
                    :: d==1 && pst[0]==1 && c!=NONE && idx[c]!=NONE -> par[f] = H(idx[c],GN(wd[idx[c]]))
#endif
                    :: else -> d++; goto nextd fi;
                 kk[f] = d; x = 0; c = 0 };
        lock(w+1);
        find_same(f,d);
        if
        :: c != NONE -> skip                   /* somebody was first */
        :: else ->
           find_room(f,d);
           if :: x != 9 ->
#if INDEX_FIRST==2
              idx[x] = f; unlock();
              atomic { assert(!(SAME(idx[d*2],f) || SAME(idx[d*2+1],f)) || claim_unique_in_index);
                       wd[f] = MK(PENDING,w,HG(h[d])); pst[d] = 2; x = 0 };
              d++; goto nextd
#elif INDEX_FIRST
              idx[x] = f;
              atomic { wd[f] = MK(PENDING,w,HG(h[d])); pst[d] = 2; x = 0 }
#else
              atomic { wd[f] = MK(PENDING,w,HG(h[d])); pst[d] = 2 };
              atomic { idx[x] = f; x = 0;
                assert(!(SAME(idx[d*2],f) || SAME(idx[d*2+1],f)) || claim_unique_in_index) }
#endif
              :: else -> x = 0 fi
        fi;
        unlock();
        d++;
nextd:  skip
     :: else -> break od;
reserved: atomic { d = 0; x = 0; f = 0; c = 0 };
     if
#if ABORT
     :: true ->
#if ABORT_CHILD_FIRST
        d = 2; do :: d > 0 -> d--;
#else
        d = 0; do :: d < 2 ->
#endif
           if :: pst[d]==2 ->
#if FREE_FIRST
                 atomic { assert(OWN_PENDING(d) || claim_own_page); wd[PG(h[d])] = MK(FREE,0,HG(h[d])+1) };
                 unindex(PG(h[d])); pst[d] = 0
#else
                 unindex(PG(h[d]));
                 atomic { assert(OWN_PENDING(d) || claim_own_page); wd[PG(h[d])] = MK(FREE,0,HG(h[d])+1); pst[d] = 0 }
#endif
              :: else fi;
#if ABORT_CHILD_FIRST
           :: else -> break od
#else
           d++ :: else -> break od
#endif
#endif
     :: true ->
#if LATE || SUPERSEDE
        /* look again: a private page whose key has no canonical page any more is announced */
        d = 0; do :: d < 2 ->
          if :: pst[d]==1 && (d==0 || pst[0]>=2) ->
             atomic { f = PG(h[d]); if :: d==0 -> par[f] = NONE :: else -> par[f] = h[0] fi; kk[f] = d };
             lock(w+1);
             find_same(f,d);
             if :: c == NONE -> find_room(f,d);
                   if :: x != 9 -> atomic { wd[f] = MK(PENDING,w,HG(h[d])); pst[d] = 2 }; atomic { idx[x] = f; x = 0 }
                      :: else -> x = 0 fi
                :: SUPERSEDE && c != NONE && idx[c] != NONE && ST(wd[idx[c]])==PENDING ->
                   atomic { wd[f] = MK(PENDING,w,HG(h[d])); pst[d] = 2 }; idx[c] = f
                :: else fi;
             unlock(); atomic { c = 0; f = 0 }
          :: else fi; d++
        :: else -> break od; d = 0;
#endif
        /* publish: the lease to the deepest first, then Live, parents first */
        atomic { if :: pst[1]==2 -> slot[w] = h[1] :: pst[1]!=2 && pst[0]==2 -> slot[w] = h[0] :: else fi };
#if PARENTS_FIRST
        d = 0; do :: d < 2 ->
#else
        d = 2; do :: d > 0 -> d--;
#endif
           atomic { if :: pst[d]==2 -> assert(OWN_PENDING(d) || claim_own_page);
                          wd[PG(h[d])] = MK(LIVE,0,HG(h[d])); pst[d] = 3; hold[w] = hold[w] | (1<<PG(h[d]));
                          assert(PARENT_OK(PG(h[d])) || claim_parent) :: else fi };
#if PARENTS_FIRST
           d++ :: else -> break od
#else
           :: else -> break od
#endif
     fi;
     /* ---- release: private pages back, lease down */
     d = 0;
     do :: d < 2 -> atomic { if :: pst[d]==1 -> assert(wd[PG(h[d])]==MK(WRITING,w,HG(h[d])) || claim_own_page);
                                   wd[PG(h[d])] = MK(FREE,0,HG(h[d])+1); pst[d] = 0 :: else fi; d++ }
        :: else -> break od;
     atomic { hold[w] = 0; slot[w] = NONE; k = 0; d = 0; h[0] = 0; h[1] = 0; pst[0] = 0; pst[1] = 0 }
  :: else -> break
  od;
  atomic { ops = 0; ended[w] = true }
  } unless { atomic { !alive[w] ->
    ops = 0; k = 0; d = 0; c = 0; x = 0; f = 0; s = 0; h[0] = 0; h[1] = 0; pst[0] = 0; pst[1] = 0 } }
}

#define HELD(p) ((alive[0] && (hold[0]>>(p))&1) || (alive[1] && (hold[1]>>(p))&1))
#define LIVE_KID(i) (ST(wd[i])==LIVE || ST(wd[i])==PENDING)
#define RESC(bb,rr) if :: wd[PG(bb)] == MK(COND,0,HG(bb)) -> wd[PG(bb)] = MK(LIVE,0,HG(bb)) :: else fi; rr = true
#define TRUTH(bb) i = 0; \
  do :: i < NP -> assert(!(LIVE_KID(i) && par[i] == bb) || claim_child_of_retired); i++ \
     :: else -> break od; i = 0; assert(!HELD(PG(bb)) || claim_held_page)
/* p is Retiring: out of the index, then Free with the next generation */
inline finish(p) {
#if FREE_FIRST
  atomic { x = wd[p]; wd[p] = MK(FREE,0,GN(x)+1); x = 0 };
  unindex(p)
#else
#if !UNINDEX_EARLY
  unindex(p);
#endif
  atomic { assert(ST(wd[p])==RETI || claim_recycled_by_owner); assert(!HELD(p) || claim_held_page);
           wd[p] = MK(FREE,0,GN(wd[p])+1) }
#endif
}
inline retire(bb,rr) {
#if UNINDEX_EARLY
  if :: !rr -> unindex(PG(bb)) :: else fi;
#endif
  atomic { if :: !rr && wd[PG(bb)] == MK(COND,0,HG(bb)) -> TRUTH(bb); wd[PG(bb)] = MK(RETI,0,HG(bb))
              :: else -> rr = true fi };
  if :: !rr -> finish(PG(bb)) :: else fi
}
inline reap(v) {
#if !REAP_MARK_LAST
  reaped[v] = true;
#endif
  i = 0;
  do :: i < NP ->
     x = wd[i];
     if :: OW(x)==v && ST(x)==PENDING ->
#if FREE_FIRST
           wd[i] = MK(FREE,0,GN(x)+1); unindex(i)
#else
           unindex(i);
           atomic { assert(wd[i]==x || claim_recycled_by_owner); wd[i] = MK(FREE,0,GN(x)+1) }
#endif
        :: OW(x)==v && ST(x)==WRITING && REAP_WRITING ->
           atomic { assert(wd[i]==x || claim_recycled_by_owner); wd[i] = MK(FREE,0,GN(x)+1) }
        :: else fi;
     atomic { i++; x = 0 }
  :: else -> break od;
#if REAP_LEASE
  slot[v] = NONE;
#endif
  atomic { i = 0; reaped[v] = true }
}
#define RESCUE_BY(cond0,cond1) if :: cond0 -> RESC(b0,r0) :: b1!=NONE && cond1 -> RESC(b1,r1) :: else fi
proctype Coord() {
  byte me = 1, r, i, x, b0 = NONE, b1 = NONE; bool r0, r1;
  do :: {
    /* ---- adopt */
    if :: me > 1 ->
       do :: i < NP -> x = wd[i];
           if
           :: ST(x)==COND && ADOPT_COND -> atomic { if :: wd[i]==x -> wd[i] = MK(LIVE,0,GN(x)) :: else fi }
           :: ST(x)==RETI && ADOPT_RETI==1 -> finish(i)
           :: ST(x)==RETI && ADOPT_RETI==2 -> wd[i] = MK(LIVE,0,GN(x))
           :: else fi; atomic { x = 0; i++ }
         :: else -> break od; i = 0
       :: else fi;
    do
    :: !alive[0] && !reaped[0] -> reap(0)
    :: r < ROUNDS -> r++;
       atomic { any_page(b0);
         if :: b0 != NONE && ST(wd[b0])==LIVE -> b0 = H(b0,GN(wd[b0])); wd[PG(b0)] = MK(COND,0,HG(b0))
            :: else -> goto next fi };
       atomic { any_page(b1);
         if :: b1 != NONE && b1 != PG(b0) && ST(wd[b1])==LIVE && par[b1] != b0 ->
               b1 = H(b1,GN(wd[b1])); wd[PG(b1)] = MK(COND,0,HG(b1))
            :: else -> b1 = NONE fi };
       atomic { do :: i < 2 -> RESCUE_BY(slot[i]==b0, slot[i]==b1); i++ :: else -> break od; i = 0 };
       atomic { do :: i < NP -> if :: LIVE_KID(i) -> RESCUE_BY(par[i]==b0, par[i]==b1) :: else fi; i++
                   :: else -> break od; i = 0 };
       retire(b0,r0);
       if :: b1!=NONE -> atomic { if :: r0 && par[PG(b0)]==b1 -> RESC(b1,r1) :: else fi }; retire(b1,r1) :: else fi;
       atomic { RESC(b0,r0); if :: b1!=NONE -> RESC(b1,r1) :: else fi };
next:  atomic { b0 = NONE; b1 = NONE; r0 = false; r1 = false; i = 0 }
    od
  } unless { atomic { me != calive ->
    me = calive; r = 0; i = 0; x = 0; b0 = NONE; b1 = NONE; r0 = false; r1 = false } }
  od
}
/* Whether and how many kills there will be is chosen at the start, so that a run without them can end. */
proctype Killer() {
  do
  :: atomic { kill_worker && !ended[0] -> kill_worker = false; alive[0] = false; hold[0] = 0 }
  :: atomic { kill_coordinator > 0 -> kill_coordinator--; calive++ }
  od
}
proctype Checker() { byte i, j, n;
  timeout -> d_step {
    assert(((ended[0] || (!alive[0] && reaped[0])) && ended[1]) || claim_stuck);
    assert(lk == 0 || HOLDER_DEAD || claim_stuck);
    i = 0; do :: i < NP ->
       assert(ST(wd[i])==FREE || ST(wd[i])==LIVE || claim_page_lost);
       if :: ST(wd[i])==LIVE ->
             assert(PG(par[i])==NONE || wd[PG(par[i])] == MK(LIVE,0,HG(par[i])) || claim_parent);
             n = 0; j = 0; do :: j < 4 -> if :: idx[j]==i -> n++; assert(j/2==kk[i] || claim_reachable_once) :: else fi; j++
                              :: else -> break od;
             assert(n == 1 || claim_reachable_once);
             j = 0; do :: j < NP -> assert(!(j!=i && ST(wd[j])==LIVE && kk[j]==kk[i] && par[j]==par[i]) || claim_unique_live); j++
                       :: else -> break od
          :: else fi; i++ :: else -> break od;
    /* a dead holder's stripe is swept by the next one who locks it */
    j = 0; do :: j < 4 -> assert(idx[j]==NONE || ST(wd[idx[j]])==LIVE || lk!=0 || claim_stale_entry); j++ :: else -> break od;
    assert((slot[0]==NONE && slot[1]==NONE) || claim_lease_left)
  }
}
init { atomic { byte i = 0;
  do :: i < 4 -> idx[i] = NONE; i++ :: else -> break od; i = 0;
  do :: i < NP -> wd[i] = MK(FREE,0,1); par[i] = NONE; i++ :: else -> break od;
  if :: INIT > 0 -> wd[0] = MK(LIVE,0,1); idx[0] = 0 :: else fi;
  if :: INIT > 1 -> wd[1] = MK(LIVE,0,1); par[1] = H(0,1); kk[1] = 1; idx[2] = 1 :: else fi;
  slot[0] = NONE; slot[1] = NONE; alive[0] = true; alive[1] = true;
#if KW
  if :: kill_worker = true :: skip fi;
#endif
  if :: kill_coordinator = 0
#if KC
     :: kill_coordinator = KC
#endif
     fi;
  run Worker(0); run Worker(1); run Coord(); run Killer(); run Checker(); i = 0 } }
