; Workers of one calling thread: what a kernel's parallel regions run on, in place of TVM's own pool,
; whose threads yield their core at every turn of waiting: a neighbour of any priority then gets a
; time slice out of each of a step's regions.
;
; Who waits spins a while (a turn takes 15 to 40 ns), giving its core to nobody, and then sleeps: not
; at once, because to be woken takes longer than most regions of a step are apart. The calling
; thread takes part. A worker that a neighbour keeps from its core is waited
; for asleep in the end, so that it may come to the core of who waits.

%worker = type { i32, i32, i32, i32, ptr, [40 x i8] }
; turn (bumped for each region, -1 to end), whether asleep, number, -, crew; a line of the cache
%crew = type { ptr, ptr, i32, i32, i32, i32, [32 x i8], i32, i32, [56 x i8], [256 x ptr] }
; 0 body, 1 its data, 2 tasks, 3 threads in use, 4 threads there are, 5 -, 6 -,
; 7 workers still at it, 8 whether their end is waited for asleep, 9 -, 10 workers from 1 on

@ferrule_own = internal thread_local global ptr null
; Where kernels look for who runs their regions; there where one has regions.
@__TVMBackendParallelLaunch = extern_weak global ptr

; What TVM makes of ferrule_launch_of and ferrule_work_of: it keeps no function of this file, but
; puts it into those that call it.
declare i32 @ferrule_launch(ptr, ptr, i32)
declare i64 @ferrule_work(ptr)
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_detach(i64)
declare void @abort()
declare ptr @aligned_alloc(i64, i64)
declare i64 @syscall(i64, ...)
declare void @llvm.x86.sse2.pause()
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)

define internal void @ferrule_sleep(ptr %word, i32 %value) {
  %r = call i64 (i64, ...) @syscall(i64 202, ptr %word, i32 128, i32 %value, ptr null)
  ret void
}

define internal void @ferrule_wake(ptr %word) {
  %r = call i64 (i64, ...) @syscall(i64 202, ptr %word, i32 129, i32 1)
  ret void
}

; The tasks number, number + step, ... of a body. A task fails where memory for its scratch is refused:
; nobody could go on, and the process ends.
define internal void @ferrule_tasks(ptr %body, ptr %data, i32 %tasks, i32 %number, i32 %step) {
entry:
  %env = alloca { ptr, i32 }
  store ptr null, ptr %env
  %count = getelementptr { ptr, i32 }, ptr %env, i32 0, i32 1
  store i32 %tasks, ptr %count
  br label %next
next:
  %id = phi i32 [ %number, %entry ], [ %following, %went ]
  %more = icmp slt i32 %id, %tasks
  br i1 %more, label %task, label %end
task:
  %r = call i32 %body(i32 %id, ptr %env, ptr %data)
  %well = icmp eq i32 %r, 0
  br i1 %well, label %went, label %failed
went:
  %following = add i32 %id, %step
  br label %next
failed:
  call void @abort()
  unreachable
end:
  ret void
}

; A worker's share of the region at hand.
define internal void @ferrule_share(ptr %crew, i32 %number) {
  %body = load ptr, ptr %crew
  %dp = getelementptr %crew, ptr %crew, i32 0, i32 1
  %data = load ptr, ptr %dp
  %tp = getelementptr %crew, ptr %crew, i32 0, i32 2
  %tasks = load i32, ptr %tp
  %ap = getelementptr %crew, ptr %crew, i32 0, i32 3
  %step = load i32, ptr %ap
  call void @ferrule_tasks(ptr %body, ptr %data, i32 %tasks, i32 %number, i32 %step)
  ret void
}

define i64 @ferrule_work_of(ptr %worker) {
entry:
  %asleep = getelementptr %worker, ptr %worker, i32 0, i32 1
  %np = getelementptr %worker, ptr %worker, i32 0, i32 2
  %number = load i32, ptr %np
  %cp = getelementptr %worker, ptr %worker, i32 0, i32 4
  %crew = load ptr, ptr %cp
  %pending = getelementptr %crew, ptr %crew, i32 0, i32 7
  %waiting = getelementptr %crew, ptr %crew, i32 0, i32 8
  br label %idle
idle:
  %last = phi i32 [ 0, %entry ], [ %last, %slept ], [ %turn, %done ]
  br label %spin
spin:
  %left = phi i32 [ 150000, %idle ], [ %less, %pause ]
  %turn = load atomic i32, ptr %worker acquire, align 4
  %same = icmp eq i32 %turn, %last
  br i1 %same, label %pause, label %begin
pause:
  call void @llvm.x86.sse2.pause()
  %less = sub i32 %left, 1
  %patient = icmp ne i32 %less, 0
  br i1 %patient, label %spin, label %tired
tired:
  store atomic i32 1, ptr %asleep seq_cst, align 4
  %again = load atomic i32, ptr %worker seq_cst, align 4
  %still = icmp eq i32 %again, %last
  br i1 %still, label %sleep, label %slept
sleep:
  call void @ferrule_sleep(ptr %worker, i32 %last)
  br label %slept
slept:
  store atomic i32 0, ptr %asleep seq_cst, align 4
  br label %idle
begin:
  %ended = icmp eq i32 %turn, -1
  br i1 %ended, label %end, label %share
share:
  call void @ferrule_share(ptr %crew, i32 %number)
  %before = atomicrmw sub ptr %pending, i32 1 seq_cst
  %islast = icmp eq i32 %before, 1
  br i1 %islast, label %tell, label %done
tell:
  %w = load atomic i32, ptr %waiting seq_cst, align 4
  %wanted = icmp ne i32 %w, 0
  br i1 %wanted, label %wake, label %done
wake:
  call void @ferrule_wake(ptr %pending)
  br label %done
done:
  br label %idle
end:
  ret i64 0
}

; The calling thread's crew, `count` threads of which (itself among them) run regions from now on.
define i64 @ferrule_hire_of(i32 %count) {
entry:
  %id = alloca i64
  %regions = icmp ne ptr @__TVMBackendParallelLaunch, null
  br i1 %regions, label %take, label %begin
take:
  store ptr @ferrule_launch, ptr @__TVMBackendParallelLaunch
  br label %begin
begin:
  %own = load ptr, ptr @ferrule_own
  %none = icmp eq ptr %own, null
  br i1 %none, label %make, label %have
make:
  %made = call ptr @aligned_alloc(i64 64, i64 2240)
  call void @llvm.memset.p0.i64(ptr %made, i8 0, i64 2240, i1 false)
  %mh = getelementptr %crew, ptr %made, i32 0, i32 4
  store i32 1, ptr %mh
  store ptr %made, ptr @ferrule_own
  br label %have
have:
  %crew = phi ptr [ %own, %begin ], [ %made, %make ]
  %hp = getelementptr %crew, ptr %crew, i32 0, i32 4
  br label %next
next:
  %there = load i32, ptr %hp
  %enough = icmp sge i32 %there, %count
  %full = icmp sge i32 %there, 256
  %stop = or i1 %enough, %full
  br i1 %stop, label %done, label %more
more:
  %worker = call ptr @aligned_alloc(i64 64, i64 64)
  call void @llvm.memset.p0.i64(ptr %worker, i8 0, i64 64, i1 false)
  %np = getelementptr %worker, ptr %worker, i32 0, i32 2
  store i32 %there, ptr %np
  %cp = getelementptr %worker, ptr %worker, i32 0, i32 4
  store ptr %crew, ptr %cp
  %r = call i32 @pthread_create(ptr %id, ptr null, ptr @ferrule_work, ptr %worker)
  %bad = icmp ne i32 %r, 0
  br i1 %bad, label %done, label %started
started:
  %thread = load i64, ptr %id
  %d = call i32 @pthread_detach(i64 %thread)
  %slot = getelementptr %crew, ptr %crew, i32 0, i32 10, i32 %there
  store ptr %worker, ptr %slot
  %grown = add i32 %there, 1
  store i32 %grown, ptr %hp
  br label %next
done:
  %got = load i32, ptr %hp
  %fewer = icmp slt i32 %count, %got
  %use = select i1 %fewer, i32 %count, i32 %got
  %ap = getelementptr %crew, ptr %crew, i32 0, i32 3
  store i32 %use, ptr %ap
  %handle = ptrtoint ptr %crew to i64
  ret i64 %handle
}

; Start one worker on what the crew holds, or end it.
define internal void @ferrule_start(ptr %crew, i32 %number, i1 %end) {
entry:
  %slot = getelementptr %crew, ptr %crew, i32 0, i32 10, i32 %number
  %worker = load ptr, ptr %slot
  %turn = load i32, ptr %worker
  %next = add i32 %turn, 1
  ; A turn is never -1 by itself: it starts at 0 and keeps to 31 bits.
  %held = and i32 %next, 2147483647
  %value = select i1 %end, i32 -1, i32 %held
  store atomic i32 %value, ptr %worker seq_cst, align 4
  %asleep = getelementptr %worker, ptr %worker, i32 0, i32 1
  %a = load atomic i32, ptr %asleep seq_cst, align 4
  %isasleep = icmp ne i32 %a, 0
  br i1 %isasleep, label %wake, label %done
wake:
  call void @ferrule_wake(ptr %worker)
  br label %done
done:
  ret void
}

; End a crew's workers; the thread whose it is may hire again.
define i64 @ferrule_dismiss_of(i64 %handle) {
entry:
  %crew = inttoptr i64 %handle to ptr
  %hp = getelementptr %crew, ptr %crew, i32 0, i32 4
  %there = load i32, ptr %hp
  %ap = getelementptr %crew, ptr %crew, i32 0, i32 3
  store i32 1, ptr %ap
  store i32 1, ptr %hp
  br label %next
next:
  %n = phi i32 [ 1, %entry ], [ %m, %one ]
  %more = icmp slt i32 %n, %there
  br i1 %more, label %one, label %end
one:
  call void @ferrule_start(ptr %crew, i32 %n, i1 true)
  %m = add i32 %n, 1
  br label %next
end:
  ret i64 0
}

; TVMBackendParallelLaunch: body(id, {-, tasks}, data) for every id below tasks (0: one a thread).
define i32 @ferrule_launch_of(ptr %body, ptr %data, i32 %given) {
entry:
  %crew = load ptr, ptr @ferrule_own
  %none = icmp eq ptr %crew, null
  br i1 %none, label %alone, label %have
have:
  %ap = getelementptr %crew, ptr %crew, i32 0, i32 3
  %threads = load i32, ptr %ap
  %one = icmp sle i32 %threads, 1
  br i1 %one, label %alone, label %together
alone:
  %unset = icmp eq i32 %given, 0
  %single = select i1 %unset, i32 1, i32 %given
  call void @ferrule_tasks(ptr %body, ptr %data, i32 %single, i32 0, i32 1)
  ret i32 0
together:
  %open = icmp eq i32 %given, 0
  %tasks = select i1 %open, i32 %threads, i32 %given
  store ptr %body, ptr %crew
  %dp = getelementptr %crew, ptr %crew, i32 0, i32 1
  store ptr %data, ptr %dp
  %tp = getelementptr %crew, ptr %crew, i32 0, i32 2
  store i32 %tasks, ptr %tp
  %pending = getelementptr %crew, ptr %crew, i32 0, i32 7
  %workers = sub i32 %threads, 1
  store atomic i32 %workers, ptr %pending monotonic, align 4
  br label %start
start:
  %n = phi i32 [ 1, %together ], [ %m, %started ]
  %more = icmp slt i32 %n, %threads
  br i1 %more, label %started, label %share
started:
  call void @ferrule_start(ptr %crew, i32 %n, i1 false)
  %m = add i32 %n, 1
  br label %start
share:
  call void @ferrule_share(ptr %crew, i32 0)
  br label %spin
spin:
  %left = phi i32 [ 50000, %share ], [ %less, %pause ]
  %p = load atomic i32, ptr %pending acquire, align 4
  %all = icmp eq i32 %p, 0
  br i1 %all, label %done, label %pause
pause:
  call void @llvm.x86.sse2.pause()
  %less = sub i32 %left, 1
  %patient = icmp ne i32 %less, 0
  br i1 %patient, label %spin, label %tired
tired:
  %waiting = getelementptr %crew, ptr %crew, i32 0, i32 8
  store atomic i32 1, ptr %waiting seq_cst, align 4
  br label %check
check:
  %q = load atomic i32, ptr %pending seq_cst, align 4
  %ready = icmp eq i32 %q, 0
  br i1 %ready, label %woken, label %sleep
sleep:
  call void @ferrule_sleep(ptr %pending, i32 %q)
  br label %check
woken:
  store atomic i32 0, ptr %waiting seq_cst, align 4
  br label %done
done:
  ret i32 0
}

; A function of tvm_ffi: the object, what it is called by, its arguments, how many.
%call = type { ptr, ptr, ptr, i32, i32 }

; Calls in order; `place` becomes that of the one that fails, whose error tvm_ffi keeps, or `count`.
define i32 @ferrule_run_of(ptr %calls, i32 %count, ptr %place) {
entry:
  %result = alloca [2 x i64]
  br label %next
next:
  %n = phi i32 [ 0, %entry ], [ %m, %went ]
  %more = icmp slt i32 %n, %count
  br i1 %more, label %one, label %end
one:
  %call = getelementptr %call, ptr %calls, i32 %n
  %object = load ptr, ptr %call
  %fp = getelementptr %call, ptr %call, i32 0, i32 1
  %function = load ptr, ptr %fp
  %ap = getelementptr %call, ptr %call, i32 0, i32 2
  %arguments = load ptr, ptr %ap
  %cp = getelementptr %call, ptr %call, i32 0, i32 3
  %given = load i32, ptr %cp
  store [2 x i64] zeroinitializer, ptr %result
  %r = call i32 %function(ptr %object, ptr %arguments, i32 %given, ptr %result)
  %well = icmp eq i32 %r, 0
  br i1 %well, label %went, label %end
went:
  %m = add i32 %n, 1
  br label %next
end:
  store i32 %n, ptr %place
  ret i32 0
}
