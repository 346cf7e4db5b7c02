/* SPDX-License-Identifier: Apache-2.0
   Copyright The kvtrie authors

   Waiting for pages (shm/waiting.h): two waiters, the older of which needs all pages, requests that come new
   and need one, a coordinator that calls, killed at any step, and an older waiter that stops or gives up.

   Rules (DESIGN.md): 16 waiting, C5, C6; W1 to W3 of shm/waiting.h.
   Claims: once the reservation stands, newcomers take no page of the older waiter's but for those that looked
   before (one each); the younger waiter is not served before the older one; at the end nobody sleeps who
   could be served. While a coordinator lives no time-out is modelled: what its polling or a waiter's own look
   would heal is an error here. After its death waiters look by themselves and the reservation ends.

   Simpler than the code: free pages are a number; a waiter that lives is never late and never silent; a
   reservation that leads nowhere (2 s) is not lifted, so who waits behind a live older one may stay.

   Pan-compile: -DNOREDUCE
   Pan-run: -E

   Switches: each default is the protocol; another value is a mutant. */

#ifndef KC             /* the coordinator may be killed */
#define KC 0
#endif
#ifndef KW             /* the older waiter may stop for good */
#define KW 0
#endif
#ifndef HOLD           /* pages that somebody has for good: the older waiter is never served */
#define HOLD 0
#endif
#ifndef GIVES_UP       /* it gives up at some time */
#define GIVES_UP HOLD
#endif
#ifndef YOUNGER        /* there is a younger waiter */
#define YOUNGER 1
#endif
#ifndef OPS            /* requests of each newcomer */
#define OPS 1
#endif
#ifndef REGARD         /* W1: who comes new regards wishes */
#define REGARD 1
#endif
#ifndef ORDER          /* W1: the younger waiter regards the older one's wish */
#define ORDER 1
#endif
#ifndef ENDS           /* W3: the reservation ends when nobody renews it */
#define ENDS 1
#endif
#ifndef SILENT         /* W3: a wish whose waiter does not come round binds nobody */
#define SILENT 1
#endif
#ifndef OWN_LOOK       /* C6: waiters look by themselves when no coordinator calls */
#define OWN_LOOK 1
#endif
#ifndef RING_LEAVE     /* who gives up rings */
#define RING_LEAVE 1
#endif
#ifndef SAY_FIRST      /* the pass says that somebody waits before it reads wishes (2: before it counts; 0: after) */
#define SAY_FIRST 1
#endif
#define NC 1                                   /* newcomers */
#define PAGES 3
hidden byte claim_overtaken, claim_out_of_order, claim_left_waiting;
byte free = PAGES - HOLD, over;
byte want[2], wish[2];
bool called[2];                                /* the wait word differs from what its waiter read last */
bool ended[2], served[2], reserved, waiters, rung;
bool call_knows;                               /* the pass that called the younger knew of the older one */
bool calive = true, stopped, silent, gone, both_wait;
byte news;

#define BINDS0 (wish[0] > 0 && !silent)
#define DUE(i) ((i == 1 && ORDER && reserved && BINDS0) -> wish[0] : 0)
#define SUM ((BINDS0 -> wish[0] : 0) + wish[1])

inline release(n) { atomic { free = free + n }; if :: waiters -> rung = true :: else fi }

proctype New() { byte due, i;
  do :: i < OPS ->
       i++;
       due = (REGARD && reserved -> SUM : 0);
       atomic { if
         :: free >= due + 1 -> free--;
            if :: wish[0] > 0 && reserved && calive && !stopped -> over++; assert(over <= NC || claim_overtaken)
               :: else fi
         :: else -> due = 9 fi };
       if :: due == 9 -> rung = true          /* asks, does not wait */
          :: else -> release(1) fi
     :: else -> break od;
  atomic { news++ } }

inline waiter(me) {
  called[me] = false;
  wish[me] = want[me];
  do
  :: atomic { if :: called[me] -> called[me] = false; due = 0; knows = call_knows
              :: else -> due = DUE(me); knows = reserved fi };
     atomic { if
       :: free >= due + want[me] -> free = free - want[me]; served[me] = true;
          assert(me == 0 || !(both_wait && knows) || wish[0] == 0 || served[0] || stopped || !calive || claim_out_of_order);
          break
       :: else fi };
     rung = true;
     if
     :: called[me]                            /* the futex compares the word read before the look */
     :: OWN_LOOK && !calive && free >= want[me] + DUE(me)      /* after 50 ms */
     :: me == 0 && GIVES_UP -> gone = true; break                  /* its time is over */
     fi
  od;
  wish[me] = 0;
  if :: served[me] -> release(want[me])
     :: else -> if :: RING_LEAVE -> rung = true :: else fi fi;
  ended[me] = true }

proctype Older() provided (!stopped) { byte due; bool knows; waiter(0) }
proctype Younger() { byte due; bool knows;
  wish[0] > 0 || ended[0] || stopped;          /* it comes later */
  both_wait = wish[0] > 0;
  waiter(1) }

proctype Coordinator() provided (calive) { byte w0, w1, f; bool in_line, left;
  do :: atomic { rung -> rung = false };
#if SAY_FIRST == 1
        if :: wish[0] > 0 || wish[1] > 0 -> waiters = true :: else fi;
#endif
        w0 = (silent -> 0 : wish[0]); w1 = wish[1];   /* a silent one is called too; it does not come, so: not here */
#if SAY_FIRST == 2
        waiters = (wish[0] > 0 || w1 > 0);
#endif
        reserved = (w0 > 0 || w1 > 0);
        f = free; in_line = false; left = false;
        if :: w0 > 0 && f >= w0 -> called[0] = true; f = f - w0
           :: w0 > 0 && f < w0 -> in_line = true; left = true
           :: else fi;
        if :: w1 > 0 && f >= w1 && !in_line -> atomic { called[1] = true; call_knows = (w0 > 0) }
           :: w1 > 0 && (f < w1 || in_line) -> left = true
           :: else fi;
        waiters = left
     :: atomic { !rung && ended[1] && (ended[0] || stopped) && news == NC -> break }
  od }

proctype Kill() {
  if :: KC -> calive = false
     :: true fi;
  if :: KC && !calive && ENDS -> reserved = false   /* its time is over */
     :: else fi }
proctype Stop() {
  if :: KW && !ended[0] -> stopped = true
     :: true fi;
  if :: stopped && SILENT -> silent = true; rung = true   /* the next look of somebody who lives rings */
     :: else fi }
proctype Check() {
  timeout ->
  assert(served[0] || stopped || gone || HOLD || claim_left_waiting);
  assert(served[1] || (stopped && served[0]) || (HOLD && calive && wish[0] > 0 && !silent) || claim_left_waiting) }

init { want[0] = PAGES; want[1] = 2;
  atomic { run Older(); run New();
#if YOUNGER
    run Younger();
#else
    served[1] = true; ended[1] = true;
#endif
    run Coordinator(); run Kill(); run Stop(); run Check() } }
