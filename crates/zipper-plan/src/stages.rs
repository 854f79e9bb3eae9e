//! Which stage a step belongs to, and at which steps something happens.

use zipper_types::{Stage, Step};

/// The run's steps: stage 1 is steps `1..=align_steps`, stage 2 the `zipper_steps` after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageSchedule {
    /// Steps of stage 1.
    pub align_steps: u64,
    /// Steps of stage 2.
    pub zipper_steps: u64,
    /// Every how many steps the run stops to validate; 0: only at the end of a stage.
    pub validate_every: u64,
}

impl StageSchedule {
    /// The last step of the run.
    pub fn last_step(&self) -> Step {
        Step(self.align_steps + self.zipper_steps)
    }

    /// The stage in which the step after `completed` is made; nothing when the run has no more steps.
    ///
    /// ```
    /// use zipper_plan::StageSchedule;
    /// use zipper_types::{Stage, Step};
    ///
    /// let schedule = StageSchedule { align_steps: 700, zipper_steps: 400, validate_every: 0 };
    /// assert_eq!(schedule.stage_after(Step(699)), Some(Stage::Align));
    /// assert_eq!(schedule.stage_after(Step(700)), Some(Stage::Zipper));
    /// assert_eq!(schedule.stage_after(Step(1100)), None);
    /// ```
    pub fn stage_after(&self, completed: Step) -> Option<Stage> {
        if completed.0 < self.align_steps {
            Some(Stage::Align)
        } else if completed < self.last_step() {
            Some(Stage::Zipper)
        } else {
            None
        }
    }

    /// The stage of a completed step; nothing before the first.
    pub fn stage_of(&self, completed: Step) -> Option<Stage> {
        self.stage_after(Step(completed.0.checked_sub(1)?))
    }

    /// Whether `completed` is the last step of a stage that has steps.
    pub fn is_stage_end(&self, completed: Step) -> bool {
        completed.0 > 0 && (completed.0 == self.align_steps || completed == self.last_step())
    }

    /// The next step after `completed` at which training pauses: the end of the stage, or a validation before it.
    pub fn next_pause(&self, completed: Step) -> Option<Step> {
        let stage_end = match self.stage_after(completed)? {
            Stage::Align => self.align_steps,
            Stage::Zipper => self.last_step().0,
        };
        let validation = completed
            .0
            .checked_div(self.validate_every)
            .map_or(u64::MAX, |validations| {
                (validations + 1).saturating_mul(self.validate_every)
            });
        Some(Step(stage_end.min(validation)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses(schedule: StageSchedule) -> Vec<u64> {
        std::iter::successors(schedule.next_pause(Step(0)), |&step| schedule.next_pause(step))
            .map(|step| step.0)
            .collect()
    }

    #[test]
    fn training_pauses_for_validation_and_at_the_end_of_each_stage() {
        let schedule = |validate_every| StageSchedule {
            align_steps: 5,
            zipper_steps: 4,
            validate_every,
        };
        assert_eq!(pauses(schedule(0)), [5, 9]);
        assert_eq!(pauses(schedule(2)), [2, 4, 5, 6, 8, 9]);
        assert_eq!(
            pauses(schedule(5)),
            [5, 9],
            "a validation at the end of a stage is one pause, not two"
        );
    }

    /// Goal: a step belongs to the stage in which it is made, and the last of each is known. Method: every step of a run of two and one.
    #[test]
    fn steps_belong_to_the_stage_that_makes_them() {
        let schedule = StageSchedule {
            align_steps: 2,
            zipper_steps: 1,
            validate_every: 0,
        };
        let (align, zipper) = (Some(Stage::Align), Some(Stage::Zipper));
        for (step, stage, is_end) in [
            (0, None, false),
            (1, align, false),
            (2, align, true),
            (3, zipper, true),
        ] {
            assert_eq!(schedule.stage_of(Step(step)), stage, "step {step}");
            assert_eq!(schedule.is_stage_end(Step(step)), is_end, "step {step}");
        }
    }

    #[test]
    fn a_stage_without_steps_is_passed_over() {
        let schedule = StageSchedule {
            align_steps: 0,
            zipper_steps: 3,
            validate_every: 0,
        };
        assert_eq!(schedule.stage_after(Step(0)), Some(Stage::Zipper));
        assert_eq!(schedule.stage_after(Step(3)), None);
        assert!(!schedule.is_stage_end(Step(0)) && schedule.is_stage_end(Step(3)));
    }
}
