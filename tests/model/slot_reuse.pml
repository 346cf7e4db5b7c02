/* SPDX-License-Identifier: Apache-2.0
   Copyright The kvtrie authors

   A worker slot given back by the reaper and used again by the next process, with the coordinator
   killed at any step of the reap.

   Rules (DESIGN.md): 14 reap (the slot last, its id not used before), 15 adoption reaps the dead.
   Claims: a live worker loses neither a page nor its lease; at the end the dead one's pages are Free and
   nothing of it is left.

   Process 1 has the slot, holds page 0 and a lease, and dies at any moment. The kernel's report (a pidfd)
   reaches the coordinator that runs then; one that adopts also finds the dead by looking at the slots, so
   it may hear of one death twice. Process 2 attaches as soon as the slot is free; it takes any page that
   is Free and leases a page of others. Writing pages name the slot, not the process, as in the segment.

   Pan-run: -E

   Switches: each default is the protocol; another value is a mutant. */

#ifndef KC             /* how often the coordinator may be killed */
#define KC 2
#endif
#ifndef MARK_LAST      /* rule 14: the slot is given up last (0: first) */
#define MARK_LAST 1
#endif
#ifndef INCARNATION    /* C5: a death is of one incarnation of the slot (0: of whoever has the slot) */
#define INCARNATION 1
#endif
#ifndef KERNEL_SAYS    /* C5: reaped only after the kernel's report (0: also when silent for long) */
#define KERNEL_SAYS 1
#endif
#ifndef REAP_PAGES     /* rule 14: the pages are freed */
#define REAP_PAGES 1
#endif
#define FREE 0
#define WRITING 1
#define NP 2
hidden byte claim_own_page, claim_own_lease, claim_page_lost, claim_lease_left, claim_stuck;
byte wd[NP]; byte lease = 1;                   /* lease of the slot: incarnation that stored it, 0 none */
byte slot_inc = 1;                             /* who has the slot; 0 = free */
byte inc = 1;                                  /* grows with each use of the slot */
bool alive = true, report = false, done2 = false, attached2 = false;
byte calive = 1, kills;

proctype Second() { byte i;
  atomic { slot_inc == 0 -> inc++; slot_inc = inc; attached2 = true };
  lease = 2;
  atomic { if :: i = 0 :: i = 1 fi; if :: wd[i]==FREE -> wd[i] = WRITING :: else -> goto none fi };
  atomic { assert(wd[i]==WRITING || claim_own_page); wd[i] = FREE };
none: atomic { assert(lease==2 || claim_own_lease); lease = 0 };
  done2 = true
}
inline reap() {
#if !MARK_LAST
  slot_inc = 0;
#endif
  i = 0;
#if REAP_PAGES
  do :: i < NP -> atomic { if :: wd[i]==WRITING -> wd[i] = FREE :: else fi; i++ } :: else -> break od; i = 0;
#endif
  lease = 0;
  slot_inc = 0
}
proctype Coord() { byte me = 1, i; bool look, silent;
  do :: {
    look = me > 1;
    do
    :: look -> look = false; if :: slot_inc==1 && !alive -> reap() :: else fi
    :: report -> report = false;
#if INCARNATION
       if :: slot_inc==1 -> reap() :: else fi
#else
       if :: slot_inc!=0 -> reap() :: else fi
#endif
#if !KERNEL_SAYS
    :: slot_inc==1 && alive && !silent -> silent = true; reap()
#endif
    od
  } unless { atomic { me != calive -> me = calive; i = 0; look = false; silent = false } }
  od
}
proctype Kernel() {
  do
  :: atomic { alive -> alive = false; report = true }
  :: atomic { kills > 0 -> kills--; calive++ }         /* a report not yet read stays readable for the next */
  od
}
/* the first process gives nothing back by itself: whatever it had is for the reaper; while it lives it has all */
proctype First() {
  if :: atomic { alive && slot_inc==1 && wd[1]==FREE -> wd[1] = WRITING };
        atomic { if :: alive -> assert((wd[1]==WRITING && wd[0]==WRITING && lease==1) || claim_own_page) :: else fi }
     :: true
  fi
}
proctype Checker() { timeout ->
  d_step {
    assert(done2 || claim_stuck);
    assert((wd[0]==FREE && wd[1]==FREE) || claim_page_lost);
    assert(lease==0 || claim_lease_left)
  } }
init { atomic { wd[0] = WRITING;
  if :: kills = 0 :: kills = 1 :: kills = KC fi;
  run First(); run Second(); run Coord(); run Kernel(); run Checker() } }
